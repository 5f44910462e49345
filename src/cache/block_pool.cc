// SPDX-License-Identifier: Apache-2.0
#include "cache/block_pool.h"

#include <algorithm>
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

// All or nothing. False when the budget does not allow it.
bool BlockPool::Grow(std::int64_t blocks) {
  const auto bytes = static_cast<std::size_t>(blocks) * block_bytes_;
  if (!budget_->Take(static_cast<std::int64_t>(bytes))) return false;
  try {
    // First, because it is what fails when there is too little memory.
    std::byte* slab = source_->Take(bytes);
    const auto reserved = addresses_.size();
    const auto total = reserved + static_cast<std::size_t>(blocks);
    addresses_.reserve(total);
    used_.reserve(total);
    free_.reserve(total);
    // Nothing below throws. Higher ids first, so that lower ones are handed out first.
    for (std::int64_t i = blocks - 1; i >= 0; --i) {
      free_.push_back(BlockId{static_cast<std::int32_t>(reserved + static_cast<std::size_t>(i))});
    }
    for (std::int64_t i = 0; i < blocks; ++i) {
      addresses_.push_back(slab + static_cast<std::size_t>(i) * block_bytes_);
      used_.push_back(false);
    }
  } catch (const std::bad_alloc&) {
    budget_->Return(static_cast<std::int64_t>(bytes));
    throw Error(
        ErrorCode::kOutOfMemory, "max_cache_size",
        fmt::format("the machine has no {} bytes left for {} more blocks of the cache; lower "
                    "max_cache_size or close other programs",
                    bytes, blocks));
  } catch (const Error&) {
    budget_->Return(static_cast<std::int64_t>(bytes));
    throw;
  }
  return true;
}

void BlockPool::Reserve(std::int64_t blocks) {
  const std::int64_t missing = blocks - blocks_reserved();
  if (missing <= 0) return;
  if (!Grow(missing)) {
    throw Error(
        ErrorCode::kOutOfMemory, "limit_bytes",
        fmt::format("{} bytes are too few: {} blocks of {} bytes are needed beside {} bytes "
                    "already reserved; raise the limit or lower max_cache_size",
                    budget_->limit(), missing, block_bytes_, budget_->used()));
  }
}

std::optional<BlockId> BlockPool::Allocate() {
  if (free_.empty()) {
    const auto slab =
        static_cast<std::int64_t>(std::max<std::size_t>(1, kSlabBytes / block_bytes_));
    if (!Grow(slab) && !Grow(1)) return std::nullopt;
  }
  const BlockId block = free_.back();
  free_.pop_back();
  used_[static_cast<std::size_t>(block.value)] = true;
  ++in_use_;
  return block;
}

void BlockPool::Free(BlockId block) {
  CAROUSEL_CHECK_GE(block.value, 0);
  CAROUSEL_CHECK_LT(block.value, blocks_reserved());
  CAROUSEL_CHECK(used_[static_cast<std::size_t>(block.value)]);
  used_[static_cast<std::size_t>(block.value)] = false;
  free_.push_back(block);
  --in_use_;
}

std::byte* BlockPool::data(BlockId block) {
  return addresses_[static_cast<std::size_t>(block.value)];
}
const std::byte* BlockPool::data(BlockId block) const {
  return addresses_[static_cast<std::size_t>(block.value)];
}

}  // namespace carousel
