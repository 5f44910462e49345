// SPDX-License-Identifier: Apache-2.0
// Who holds which block, counted over all that hold some, to be held against what the pools know:
// no block is lost, and none is held more or less often than its pool thinks. For tests.
#pragma once

#include <cstdint>
#include <map>
#include <span>
#include <vector>

#include "cache/block_pool.h"

namespace carousel {

class TierPools;

class Holdings {
 public:
  // One holder more.
  void Add(const BlockPool& pool, BlockId block) {
    std::vector<std::int32_t>& holders = holders_[&pool];
    const auto index = static_cast<std::size_t>(block.value);
    if (index >= holders.size()) holders.resize(index + 1);
    ++holders[index];
  }
  // A sequence was promised so many blocks in each lane.
  void AddPromise(const TierPools& pools, std::int64_t blocks) { promised_[&pools] += blocks; }

  // By block; the last ones that nobody holds may be missing.
  std::span<const std::int32_t> HoldersOf(const BlockPool& pool) const {
    const auto found = holders_.find(&pool);
    return found == holders_.end() ? std::span<const std::int32_t>() : found->second;
  }
  std::int64_t PromisedBy(const TierPools& pools) const {
    const auto found = promised_.find(&pools);
    return found == promised_.end() ? 0 : found->second;
  }

 private:
  std::map<const BlockPool*, std::vector<std::int32_t>> holders_;
  std::map<const TierPools*, std::int64_t> promised_;
};

}  // namespace carousel
