// SPDX-License-Identifier: Apache-2.0
#include "cache/block_pools.h"

#include <algorithm>
#include <map>

#include "base/check.h"
#include "cache/holdings.h"

namespace carousel {

BlockPool* PoolsByShape::Of(const BlockShape& shape) {
  auto pool = std::find_if(pools_.begin(), pools_.end(),
                           [&](const auto& each) { return each->shape() == shape; });
  if (pool == pools_.end()) {
    pools_.push_back(std::make_unique<BlockPool>(shape, &budget_));
    pool = std::prev(pools_.end());
  }
  return pool->get();
}

void PoolsByShape::Collect(std::int64_t bytes, const BlockPool* taker) {
  for (const auto& pool : pools_) {
    if (bytes <= 0) return;
    if (pool.get() != taker) bytes -= pool->ReturnFreeSlabs(bytes);
  }
}

std::int64_t PoolsByShape::bytes_in_use() const {
  std::int64_t bytes = 0;
  for (const auto& pool : pools_) {
    bytes += pool->blocks_in_use() * static_cast<std::int64_t>(pool->shape().bytes());
  }
  return bytes;
}

void PoolsByShape::CheckIntegrity(const Holdings& holdings) const {
  std::int64_t reserved = 0;
  for (const auto& pool : pools_) {
    pool->CheckIntegrity(holdings.HoldersOf(*pool));
    reserved += pool->blocks_reserved() * static_cast<std::int64_t>(pool->shape().bytes());
  }
  CAROUSEL_CHECK_EQ(reserved, bytes_reserved());
  if (limit_bytes() > 0) CAROUSEL_CHECK_LE(reserved, limit_bytes());
}

BlockPools::BlockPools(std::span<const BlockShape> group_shapes, PoolsByShape& pools)
    : pools_(&pools) {
  for (const BlockShape& shape : group_shapes) groups_.push_back(pools_->Of(shape));
}

BlockPools::BlockPools(std::span<const BlockShape> group_shapes, std::int64_t limit_bytes)
    : own_(std::make_unique<PoolsByShape>(limit_bytes)), pools_(own_.get()) {
  for (const BlockShape& shape : group_shapes) groups_.push_back(pools_->Of(shape));
}

void BlockPools::Reserve(std::span<const std::int64_t> blocks_per_group) {
  CAROUSEL_CHECK_EQ(blocks_per_group.size(), groups_.size());
  std::map<BlockPool*, std::int64_t> blocks_per_pool;
  for (std::size_t group = 0; group < groups_.size(); ++group)
    blocks_per_pool[groups_[group]] += blocks_per_group[group];
  for (const auto& [pool, blocks] : blocks_per_pool) pool->Reserve(blocks);
}

std::int64_t BlockPools::bytes_per_token() const {
  std::int64_t bytes = 0;
  std::int64_t block_size = 1;
  for (const BlockPool* pool : groups_) {
    bytes += static_cast<std::int64_t>(pool->shape().bytes());
    block_size = pool->shape().block_size;
  }
  return (bytes + block_size - 1) / block_size;
}

}  // namespace carousel
