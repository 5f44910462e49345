// SPDX-License-Identifier: Apache-2.0
// The pools that blocks lie in: one for each shape, all under one budget, and which of them each
// cache group of a sequence takes its blocks from.
#pragma once

#include <cstdint>
#include <memory>
#include <span>
#include <vector>

#include "cache/block_pool.h"

namespace carousel {

class Holdings;

// The pools of all sequences of an engine. Where the limit is spent, free slabs of one shape make
// room for another's.
class PoolsByShape {
 public:
  // limit_bytes 0: no limit.
  explicit PoolsByShape(std::int64_t limit_bytes)
      : budget_(limit_bytes,
                [this](std::int64_t bytes, const BlockPool* taker) { Collect(bytes, taker); }) {}
  PoolsByShape(const PoolsByShape&) = delete;
  PoolsByShape& operator=(const PoolsByShape&) = delete;

  // The pool of this shape; a new one where there is none yet. Stays where it is.
  BlockPool* Of(const BlockShape& shape);

  std::int64_t limit_bytes() const { return budget_.limit(); }  // 0: none
  std::int64_t bytes_in_use() const;
  std::int64_t bytes_reserved() const { return budget_.used(); }
  // CHECKs that what is held of each pool is what it thinks, and that the budget counts them all.
  void CheckIntegrity(const Holdings& holdings) const;

 private:
  void Collect(std::int64_t bytes, const BlockPool* taker);

  ByteBudget budget_;
  std::vector<std::unique_ptr<BlockPool>> pools_;
};

// The pool of each cache group. Groups of the same shape share one.
class BlockPools {
 public:
  // One shape per cache group. `pools` outlive this.
  BlockPools(std::span<const BlockShape> group_shapes, PoolsByShape& pools);
  // Pools of its own. limit_bytes 0: no limit.
  BlockPools(std::span<const BlockShape> group_shapes, std::int64_t limit_bytes);

  BlockPool& of(std::int64_t group) { return *groups_[static_cast<std::size_t>(group)]; }
  const BlockPool& of(std::int64_t group) const {
    return *groups_[static_cast<std::size_t>(group)];
  }
  std::int64_t groups() const { return static_cast<std::int64_t>(groups_.size()); }

  // Makes sure that blocks_per_group[g] blocks of each group can be in use at once. Throws as
  // BlockPool::Reserve.
  void Reserve(std::span<const std::int64_t> blocks_per_group);

  // Of all that share the pools.
  std::int64_t bytes_in_use() const { return pools_->bytes_in_use(); }
  std::int64_t bytes_reserved() const { return pools_->bytes_reserved(); }
  // Bytes that one more token takes over all groups, rounded up from whole blocks.
  std::int64_t bytes_per_token() const;

 private:
  std::unique_ptr<PoolsByShape> own_;  // null: others share them
  PoolsByShape* pools_;
  std::vector<BlockPool*> groups_;
};

}  // namespace carousel
