// SPDX-License-Identifier: Apache-2.0
// What all sequences of an engine share, whatever their settings: the memory that blocks lie in,
// the tables that queries are rotated by, the kernel, and what is counted of all. It knows of no
// sequence.
#pragma once

#include <cstdint>
#include <memory>
#include <vector>

#include "attention/paged_attention.h"
#include "cache/block_pools.h"
#include "cache/tier_pools.h"
#include "carousel/metrics.h"
#include "carousel/model.h"
#include "rope/rotation_table.h"

namespace carousel {

class CacheMemory {
 public:
  // `layers` outlive it. limit_bytes, of the pools; 0: no limit.
  CacheMemory(const std::vector<AttentionLayerSpec>& layers, std::int64_t limit_bytes)
      : layers_(layers), pools_(limit_bytes) {}

  const std::vector<AttentionLayerSpec>& layers() const { return layers_; }
  PoolsByShape& pools() { return pools_; }
  const PoolsByShape& pools() const { return pools_; }
  PagedAttention& attention() { return attention_; }
  // Counted by all sequences.
  EvictedBlocks& evicted_blocks() { return evicted_blocks_; }
  const EvictedBlocks& evicted_blocks() const { return evicted_blocks_; }
  // For layers that rotate so. Stays where it is.
  RotationTable* RotationOf(const LayerRope& rope, std::int64_t block_size);
  // The second tier of sequences with these options; made when they are first asked for. Throws as
  // TierPools, and where the file is one that others with other options use.
  TierPools* TierOf(const RecallStoreOptions& options);
  // CHECKs that what all sequences together hold is what the pools think.
  void CheckIntegrity(const Holdings& holdings) const;

 private:
  struct Tier {
    RecallStoreOptions options;
    std::unique_ptr<TierPools> pools;
  };

  const std::vector<AttentionLayerSpec>& layers_;
  PoolsByShape pools_;
  std::vector<std::unique_ptr<RotationTable>> rotation_tables_;
  std::vector<Tier> tiers_;
  PagedAttention attention_;
  EvictedBlocks evicted_blocks_;
};

}  // namespace carousel
