// SPDX-License-Identifier: Apache-2.0
// Whether a cache fits the window that a model was trained on: what the sizes need, how those that
// yield are made to fit, and what is said of those that do not.
#pragma once

#include <cstdint>
#include <vector>

#include "cache/cache_group.h"
#include "carousel/config.h"
#include "carousel/model.h"

namespace carousel {

// What a configuration with eviction gives the cache groups of a model.
struct CacheLayout {
  std::vector<CacheGroup> groups;  // by layer, then by head
  // [groups]: what a layer's sliding window needs between steps; 0: no window, evicted by score.
  std::vector<std::int64_t> window_tokens;
  // [groups]: what each may hold; see EngineSettings::max_cache_size.
  std::vector<std::int64_t> max_cache_size;
};

// What a layer's sliding window needs between steps: its tokens, and a block that stands half
// inside. 0: the layer has none, or one so long that with a chunk it passes the trained window;
// then it is no help, and the layer is treated as one that sees everything.
std::int64_t WindowTokens(const AttentionLayerSpec& layer, std::int64_t trained_window,
                          const EngineConfig& config);

// `config` evicts; sizes per layer are as many as there are layers.
CacheLayout LayOutCache(const ModelSpec& spec, const EngineConfig& config);

// The most positions that compact positions can come to: a full cache, a chunk, a block that has
// begun, and `recall_blocks` brought back in the layers that recall.
std::int64_t MostPositions(const ModelSpec& spec, const EngineConfig& config,
                           std::int64_t recall_blocks);

// `config` with the sizes that yield made smaller, as far as that helps: the areas in which nothing
// is evicted until they leave a block of the cache, and, where `bound_by_window`, all of them until
// compact positions fit the trained window; recall that yields is not counted.
EngineConfig FitSizes(const ModelSpec& spec, EngineConfig config, bool bound_by_window);

// Throws carousel::Error (kInvalidArgument) when MostPositions with config.recall.blocks passes the
// trained window: names a size at fault, and the largest value of it with which the others can
// still be made to fit, by errors like this one where need be. `config` comes from FitSizes,
// `asked_block_size` from what that was given: sizes are asked for in such blocks.
void CheckFitsWindow(const ModelSpec& spec, const EngineConfig& config,
                     std::int64_t asked_block_size);

}  // namespace carousel
