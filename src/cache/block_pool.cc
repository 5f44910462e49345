// SPDX-License-Identifier: Apache-2.0
#include "cache/block_pool.h"

#include <algorithm>
#include <exception>
#include <new>

#include "base/aligned_buffer.h"
#include "base/check.h"
#include "carousel/error.h"

namespace carousel {
namespace {

// A slab of at most about this many bytes: a huge page.
constexpr std::size_t kSlabBytes = kHugePageBytes;

}  // namespace

BlockPool::BlockPool(const BlockShape& shape, ByteBudget* budget, SlabSource* source)
    : shape_(shape),
      block_bytes_(shape.bytes()),
      budget_(budget),
      source_(source != nullptr ? source : &heap_) {
  CAROUSEL_CHECK_GT(block_bytes_, std::size_t{0});
}

BlockPool::~BlockPool() {
  budget_->Return(blocks_reserved() * static_cast<std::int64_t>(block_bytes_));
}

// At least one.
std::int64_t BlockPool::SlabBlocks() const {
  return static_cast<std::int64_t>(std::max<std::size_t>(1, kSlabBytes / block_bytes_));
}

// All or nothing. False when the budget does not allow it; throws what the source does.
bool BlockPool::Grow(std::int64_t blocks) {
  const auto bytes = static_cast<std::size_t>(blocks) * block_bytes_;
  if (!budget_->Take(static_cast<std::int64_t>(bytes))) return false;
  const auto reserved = addresses_.size();
  const auto total = reserved + static_cast<std::size_t>(blocks);
  std::byte* slab = nullptr;
  try {
    // First, because it is what fails when there is too little memory.
    slab = source_->Take(bytes);
    addresses_.reserve(total);
    holders_.reserve(total);
    free_.reserve(total);
  } catch (...) {
    if (slab != nullptr) source_->GiveBack();
    budget_->Return(static_cast<std::int64_t>(bytes));
    throw;
  }
  // Nothing below throws. Higher ids first, so that lower ones are handed out first.
  for (std::int64_t i = blocks - 1; i >= 0; --i) {
    free_.push_back(BlockId{static_cast<std::int32_t>(reserved + static_cast<std::size_t>(i))});
  }
  for (std::int64_t i = 0; i < blocks; ++i) {
    addresses_.push_back(slab + static_cast<std::size_t>(i) * block_bytes_);
    holders_.push_back(0);
  }
  return true;
}

// Grow, with an error that users understand.
bool BlockPool::GrowOrExplain(std::int64_t blocks) {
  try {
    return Grow(blocks);
  } catch (const std::bad_alloc&) {
    throw Error(
        ErrorCode::kOutOfMemory, "max_cache_size",
        fmt::format("the machine has no {} bytes left for {} more blocks of the cache; lower "
                    "max_cache_size or close other programs",
                    static_cast<std::size_t>(blocks) * block_bytes_, blocks));
  }
}

void BlockPool::Reserve(std::int64_t blocks) {
  const std::int64_t missing = blocks - blocks_reserved();
  if (missing <= 0) return;
  if (!GrowOrExplain(missing)) {
    throw Error(
        ErrorCode::kOutOfMemory, "limit_bytes",
        fmt::format("{} bytes are too few: {} blocks of {} bytes are needed beside {} bytes "
                    "already reserved; raise the limit or lower max_cache_size",
                    budget_->limit(), missing, block_bytes_, budget_->used()));
  }
}

void BlockPool::GrowTo(std::int64_t blocks) {
  std::int64_t slab = SlabBlocks();
  while (blocks_reserved() < blocks) {
    const std::int64_t least = std::min(slab, blocks - blocks_reserved());
    try {
      CAROUSEL_CHECK(Grow(slab));
    } catch (const std::exception&) {  // no room: a file's or the memory's
      if (slab == least) throw;
      slab = std::max(least, slab / 2);
    }
  }
}

std::optional<BlockId> BlockPool::Allocate() {
  if (free_.empty()) {
    if (!GrowOrExplain(SlabBlocks()) && !GrowOrExplain(1)) return std::nullopt;
  }
  const BlockId block = free_.back();
  free_.pop_back();
  holders_[static_cast<std::size_t>(block.value)] = 1;
  ++in_use_;
  return block;
}

std::int32_t& BlockPool::HoldersOf(BlockId block) {
  CAROUSEL_CHECK_GE(block.value, 0);
  CAROUSEL_CHECK_LT(block.value, blocks_reserved());
  std::int32_t& holders = holders_[static_cast<std::size_t>(block.value)];
  CAROUSEL_CHECK_GT(holders, 0);
  return holders;
}

void BlockPool::Share(BlockId block) { ++HoldersOf(block); }

void BlockPool::Free(BlockId block) {
  if (--HoldersOf(block) > 0) return;
  free_.push_back(block);
  --in_use_;
}

void BlockPool::CheckIntegrity(std::span<const std::int32_t> holders) const {
  CAROUSEL_CHECK_LE(holders.size(), holders_.size());
  std::int64_t in_use = 0;
  for (std::size_t i = 0; i < holders_.size(); ++i) {
    const std::int32_t expected = i < holders.size() ? holders[i] : 0;
    CAROUSEL_CHECK_EQ(holders_[i], expected);
    if (expected > 0) ++in_use;
  }
  CAROUSEL_CHECK_EQ(in_use_, in_use);
  CAROUSEL_CHECK_EQ(blocks_free() + in_use, blocks_reserved());
  std::vector<bool> is_free(holders_.size());
  for (const BlockId block : free_) {
    const auto index = static_cast<std::size_t>(block.value);
    CAROUSEL_CHECK_EQ(holders_[index], 0);
    CAROUSEL_CHECK(!is_free[index]);
    is_free[index] = true;
  }
}

std::byte* BlockPool::data(BlockId block) {
  return addresses_[static_cast<std::size_t>(block.value)];
}
const std::byte* BlockPool::data(BlockId block) const {
  return addresses_[static_cast<std::size_t>(block.value)];
}

}  // namespace carousel
