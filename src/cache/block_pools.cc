// SPDX-License-Identifier: Apache-2.0
#include "cache/block_pools.h"

#include "base/check.h"

namespace carousel {

BlockPools::BlockPools(std::span<const BlockShape> group_shapes, std::int64_t limit_bytes)
    : budget_(limit_bytes) {
  for (const BlockShape& shape : group_shapes) {
    std::size_t pool = 0;
    while (pool < pools_.size() && pools_[pool]->shape() != shape) ++pool;
    if (pool == pools_.size()) pools_.push_back(std::make_unique<BlockPool>(shape, &budget_));
    pool_of_group_.push_back(pool);
  }
}

void BlockPools::Reserve(std::span<const std::int64_t> blocks_per_group) {
  CAROUSEL_CHECK_EQ(blocks_per_group.size(), pool_of_group_.size());
  std::vector<std::int64_t> blocks_per_pool(pools_.size(), 0);
  for (std::size_t group = 0; group < pool_of_group_.size(); ++group) {
    blocks_per_pool[pool_of_group_[group]] += blocks_per_group[group];
  }
  for (std::size_t pool = 0; pool < pools_.size(); ++pool)
    pools_[pool]->Reserve(blocks_per_pool[pool]);
}

std::int64_t BlockPools::bytes_in_use() const {
  std::int64_t bytes = 0;
  for (const auto& pool : pools_) {
    bytes += pool->blocks_in_use() * static_cast<std::int64_t>(pool->shape().bytes());
  }
  return bytes;
}

std::int64_t BlockPools::bytes_per_token() const {
  std::int64_t bytes = 0;
  std::int64_t block_size = 1;
  for (const std::size_t pool : pool_of_group_) {
    bytes += static_cast<std::int64_t>(pools_[pool]->shape().bytes());
    block_size = pools_[pool]->shape().block_size;
  }
  return (bytes + block_size - 1) / block_size;
}

}  // namespace carousel
