// SPDX-License-Identifier: Apache-2.0
#include "engine/shared_cache.h"

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

SharedCache::SharedCache(const EngineSettings& settings, CacheMemory* memory)
    : settings_(settings), memory_(memory), pools_(settings.shapes, memory->pools()) {
  if (!settings_.recall_lanes.empty()) tier_ = memory_->TierOf(TierOptions(settings_));
  for (const CacheGroup& group : settings_.groups) {
    const LayerRope& rope = settings_.rope.layers[static_cast<std::size_t>(group.layer)];
    rotations_.push_back(rope.rotates() ? memory_->RotationOf(rope, block_size()) : nullptr);
  }
  if (KeysNeedWholeBlocks(settings_.config.cache.key_type)) {
    for (BlockShape open : settings_.shapes) {
      open.key_type = open.value_type = KvType::kF32;
      open_shapes_.push_back(open);
    }
  }
  first_group_.assign(layer_specs().size() + 1, 0);
  for (const CacheGroup& group : settings_.groups)
    ++first_group_[static_cast<std::size_t>(group.layer) + 1];
  std::partial_sum(first_group_.begin(), first_group_.end(), first_group_.begin());
}

void SharedCache::Reserve() {
  if (!settings_.reserved_blocks.empty()) pools_.Reserve(settings_.reserved_blocks);
}

}  // namespace carousel
