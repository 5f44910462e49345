// SPDX-License-Identifier: Apache-2.0
// The pools of all cache groups under one budget: groups of the same shape share a pool.
#pragma once

#include <cstdint>
#include <memory>
#include <span>
#include <vector>

#include "cache/block_pool.h"

namespace carousel {

class BlockPools {
 public:
  // One shape per cache group. limit_bytes 0: no limit.
  BlockPools(std::span<const BlockShape> group_shapes, std::int64_t limit_bytes);

  BlockPool& of(std::int64_t group) {
    return *pools_[pool_of_group_[static_cast<std::size_t>(group)]];
  }
  const BlockPool& of(std::int64_t group) const {
    return *pools_[pool_of_group_[static_cast<std::size_t>(group)]];
  }
  std::int64_t groups() const { return static_cast<std::int64_t>(pool_of_group_.size()); }

  // Makes room for blocks_per_group[g] blocks of each group at once. Throws as BlockPool::Reserve.
  void Reserve(std::span<const std::int64_t> blocks_per_group);

  std::int64_t bytes_in_use() const;
  std::int64_t bytes_reserved() const { return budget_.used(); }
  // Bytes that one more token takes over all groups, rounded up from whole blocks.
  std::int64_t bytes_per_token() const;

 private:
  ByteBudget budget_;
  std::vector<std::unique_ptr<BlockPool>> pools_;
  std::vector<std::size_t> pool_of_group_;
};

}  // namespace carousel
