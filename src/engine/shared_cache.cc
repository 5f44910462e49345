// SPDX-License-Identifier: Apache-2.0
#include "engine/shared_cache.h"

#include <algorithm>
#include <numeric>

#include "cache/plane_layout.h"

namespace carousel {
namespace {

RecallStoreOptions TierOptions(const EngineSettings& settings) {
  const RecallConfig& recall = settings.config.recall;
  return {.lanes = settings.recall_lanes,
          .file = recall.store_file,
          .limit_bytes = recall.limit_bytes,
          .limit_blocks = recall.limit_tokens / settings.config.cache.block_size};
}

}  // namespace

SharedCache::SharedCache(const EngineSettings& settings,
                         const std::vector<AttentionLayerSpec>& layers)
    : settings_(settings), layers_(layers), pools_(settings.shapes, settings.limit_bytes) {
  if (!settings_.reserved_blocks.empty()) pools_.Reserve(settings_.reserved_blocks);
  if (!settings_.recall_lanes.empty()) tier_.emplace(TierOptions(settings_));
  for (const CacheGroup& group : settings_.groups) {
    const LayerRope& rope = settings_.rope.layers[static_cast<std::size_t>(group.layer)];
    std::int64_t index = -1;
    if (rope.rotates()) {
      const auto same =
          std::find_if(rotation_tables_.begin(), rotation_tables_.end(),
                       [&](const RotationTable& table) { return table.rope() == rope; });
      index = same - rotation_tables_.begin();
      if (same == rotation_tables_.end()) rotation_tables_.emplace_back(rope, block_size());
    }
    rotation_of_group_.push_back(index);
  }
  if (KeysNeedWholeBlocks(settings_.config.cache.key_type)) {
    for (BlockShape open : settings_.shapes) {
      open.key_type = open.value_type = KvType::kF32;
      open_shapes_.push_back(open);
    }
  }
  first_group_.assign(layers.size() + 1, 0);
  for (const CacheGroup& group : settings_.groups)
    ++first_group_[static_cast<std::size_t>(group.layer) + 1];
  std::partial_sum(first_group_.begin(), first_group_.end(), first_group_.begin());
}

RotationTable* SharedCache::rotation(std::int64_t group) {
  const std::int64_t index = rotation_of_group_[static_cast<std::size_t>(group)];
  return index < 0 ? nullptr : &rotation_tables_[static_cast<std::size_t>(index)];
}

}  // namespace carousel
