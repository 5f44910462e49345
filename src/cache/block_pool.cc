// SPDX-License-Identifier: Apache-2.0
#include "cache/block_pool.h"

#include <algorithm>
#include <exception>
#include <functional>
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
  if (!budget_->Take(static_cast<std::int64_t>(bytes), this)) return false;
  const auto total = addresses_.size() + static_cast<std::size_t>(blocks);
  std::byte* slab = nullptr;
  try {
    // First, because it is what fails when there is too little memory.
    slab = source_->Take(bytes);
    addresses_.reserve(total);
    holders_.reserve(total);
    free_.reserve(total);
    unused_.reserve(total);
    slabs_.reserve(slabs_.size() + 1);
  } catch (...) {
    if (slab != nullptr) source_->GiveBack();
    budget_->Return(static_cast<std::int64_t>(bytes));
    throw;
  }
  // Nothing below throws.
  const auto place = std::lower_bound(
      slabs_.begin(), slabs_.end(), slab,
      [](const Slab& each, const std::byte* data) { return std::less<>()(each.data, data); });
  slabs_.insert(place, {.data = slab, .blocks = blocks});
  const std::size_t first = free_.size();
  for (std::int64_t i = 0; i < blocks; ++i) {
    if (unused_.empty()) {
      unused_.push_back(BlockId{static_cast<std::int32_t>(addresses_.size())});
      addresses_.push_back(nullptr);
      holders_.push_back(0);
    }
    const BlockId block = unused_.back();
    unused_.pop_back();
    addresses_[static_cast<std::size_t>(block.value)] =
        slab + static_cast<std::size_t>(i) * block_bytes_;
    free_.push_back(block);
  }
  reserved_ += blocks;
  // So that what lies first is handed out first.
  std::reverse(free_.begin() + static_cast<std::ptrdiff_t>(first), free_.end());
  return true;
}

std::size_t BlockPool::SlabOf(BlockId block) const {
  const std::byte* address = addresses_[static_cast<std::size_t>(block.value)];
  const auto after = std::upper_bound(
      slabs_.begin(), slabs_.end(), address,
      [](const std::byte* data, const Slab& each) { return std::less<>()(data, each.data); });
  return static_cast<std::size_t>(after - slabs_.begin()) - 1;
}

// None of its blocks is in use.
void BlockPool::ReturnSlab(std::size_t slab) {
  std::erase_if(free_, [&](BlockId block) {
    if (SlabOf(block) != slab) return false;
    unused_.push_back(block);  // there is room: Grow has seen to it
    return true;
  });
  for (const BlockId block : unused_) addresses_[static_cast<std::size_t>(block.value)] = nullptr;
  reserved_ -= slabs_[slab].blocks;
  heap_.Free(slabs_[slab].data);
  budget_->Return(slabs_[slab].blocks * static_cast<std::int64_t>(block_bytes_));
  slabs_.erase(slabs_.begin() + static_cast<std::ptrdiff_t>(slab));
}

std::int64_t BlockPool::ReturnFreeSlabs(std::int64_t bytes) noexcept {
  CAROUSEL_CHECK(source_ == &heap_);
  for (Slab& slab : slabs_) slab.free = 0;
  for (const BlockId block : free_) ++slabs_[SlabOf(block)].free;
  const std::int64_t before = reserved_;
  for (std::size_t slab = slabs_.size(); slab-- > 0;) {
    if ((before - reserved_) * static_cast<std::int64_t>(block_bytes_) >= bytes) break;
    if (slabs_[slab].free == slabs_[slab].blocks) ReturnSlab(slab);
  }
  return (before - reserved_) * static_cast<std::int64_t>(block_bytes_);
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
  CAROUSEL_CHECK_LT(block.value, std::ssize(holders_));
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
    if (expected > 0) CAROUSEL_CHECK(addresses_[i] != nullptr);
  }
  CAROUSEL_CHECK_EQ(in_use_, in_use);
  CAROUSEL_CHECK_EQ(blocks_free() + in_use, blocks_reserved());
  std::vector<bool> is_free(holders_.size());
  for (const BlockId block : free_) {
    const auto index = static_cast<std::size_t>(block.value);
    CAROUSEL_CHECK_EQ(holders_[index], 0);
    CAROUSEL_CHECK(addresses_[index] != nullptr);
    CAROUSEL_CHECK(!is_free[index]);
    is_free[index] = true;
  }
  std::int64_t in_slabs = 0;
  for (const Slab& slab : slabs_) in_slabs += slab.blocks;
  CAROUSEL_CHECK_EQ(in_slabs, blocks_reserved());
  for (const BlockId block : unused_)
    CAROUSEL_CHECK(addresses_[static_cast<std::size_t>(block.value)] == nullptr);
  CAROUSEL_CHECK_EQ(blocks_reserved() + std::ssize(unused_), std::ssize(holders_));
}

std::byte* BlockPool::data(BlockId block) {
  return addresses_[static_cast<std::size_t>(block.value)];
}
const std::byte* BlockPool::data(BlockId block) const {
  return addresses_[static_cast<std::size_t>(block.value)];
}

}  // namespace carousel
