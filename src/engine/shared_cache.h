// SPDX-License-Identifier: Apache-2.0
// What the sequences of an engine share: settings, the pools that their blocks lie in, the tables
// that queries are rotated by, and the kernel. It knows of no sequence.
#pragma once

#include <cstdint>
#include <optional>
#include <vector>

#include "attention/paged_attention.h"
#include "cache/block_pools.h"
#include "cache/tier_pools.h"
#include "carousel/model.h"
#include "engine/settings.h"
#include "rope/rotation_table.h"

namespace carousel {

class SharedCache {
 public:
  // `layers` outlive it. Reserves what the settings say; throws carousel::Error (kOutOfMemory), and
  // as TierPools.
  SharedCache(const EngineSettings& settings, const std::vector<AttentionLayerSpec>& layers);

  const EngineSettings& settings() const { return settings_; }
  std::int64_t block_size() const { return settings_.config.cache.block_size; }

  std::int64_t layers() const { return std::ssize(layers_); }
  const std::vector<AttentionLayerSpec>& layer_specs() const { return layers_; }
  const AttentionLayerSpec& layer(std::int64_t layer) const {
    return layers_[static_cast<std::size_t>(layer)];
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
  RotationTable* rotation(std::int64_t group);

  BlockPools& pools() { return pools_; }
  const BlockPools& pools() const { return pools_; }
  PagedAttention& attention() { return attention_; }
  // Where evicted blocks are kept; null: recall is off.
  TierPools* tier() { return tier_ ? &*tier_ : nullptr; }

 private:
  EngineSettings settings_;
  const std::vector<AttentionLayerSpec>& layers_;
  BlockPools pools_;
  std::optional<TierPools> tier_;
  std::vector<BlockShape> open_shapes_;
  std::vector<RotationTable> rotation_tables_;   // one per different LayerRope
  std::vector<std::int64_t> rotation_of_group_;  // [groups], index of a table; -1: does not rotate
  std::vector<std::int64_t> first_group_;        // [layers + 1], in settings' groups
  PagedAttention attention_;
};

}  // namespace carousel
