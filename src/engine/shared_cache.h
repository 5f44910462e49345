// SPDX-License-Identifier: Apache-2.0
// What sequences with the same settings share: the settings, and which of the engine's memory each
// of their cache groups uses. It knows of no sequence.
#pragma once

#include <cstdint>
#include <vector>

#include "cache/block_pools.h"
#include "cache/tier_pools.h"
#include "carousel/model.h"
#include "engine/cache_memory.h"
#include "engine/settings.h"
#include "rope/rotation_table.h"

namespace carousel {

class SharedCache {
 public:
  // `memory` outlives it. Throws as TierPools.
  SharedCache(const EngineSettings& settings, CacheMemory* memory);
  // Takes the memory that one sequence needs. Throws carousel::Error (kOutOfMemory).
  void Reserve();

  const EngineSettings& settings() const { return settings_; }
  std::int64_t block_size() const { return settings_.config.cache.block_size; }

  std::int64_t layers() const { return std::ssize(layer_specs()); }
  const std::vector<AttentionLayerSpec>& layer_specs() const { return memory_->layers(); }
  const AttentionLayerSpec& layer(std::int64_t layer) const {
    return layer_specs()[static_cast<std::size_t>(layer)];
  }
  // The first cache group of a layer; of layers(): how many groups there are.
  std::int64_t first_group(std::int64_t layer) const {
    return first_group_[static_cast<std::size_t>(layer)];
  }

  std::int64_t groups() const { return std::ssize(settings_.groups); }
  const CacheGroup& group(std::int64_t group) const {
    return settings_.groups[static_cast<std::size_t>(group)];
  }
  const AttentionLayerSpec& layer_of(std::int64_t group) const {
    return layer(this->group(group).layer);
  }
  const BlockShape& shape(std::int64_t group) const {
    return settings_.shapes[static_cast<std::size_t>(group)];
  }
  // How a sequence's newest block lies in memory of its own until it is full, where keys can only
  // be coded a whole block at a time: in f32. Empty otherwise.
  const std::vector<BlockShape>& open_shapes() const { return open_shapes_; }  // [groups]
  // null: the group's layer does not rotate.
  RotationTable* rotation(std::int64_t group) {
    return rotations_[static_cast<std::size_t>(group)];
  }

  BlockPools& pools() { return pools_; }
  const BlockPools& pools() const { return pools_; }
  // Of all sequences of the engine.
  EvictedBlocks& evicted_blocks() { return memory_->evicted_blocks(); }
  // Where evicted blocks are kept; null: recall is off.
  TierPools* tier() { return tier_; }

 private:
  EngineSettings settings_;
  CacheMemory* memory_;
  BlockPools pools_;
  TierPools* tier_ = nullptr;
  std::vector<BlockShape> open_shapes_;
  std::vector<RotationTable*> rotations_;  // [groups]
  std::vector<std::int64_t> first_group_;  // [layers + 1], in settings' groups
};

}  // namespace carousel
