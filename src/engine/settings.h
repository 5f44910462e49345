// SPDX-License-Identifier: Apache-2.0
// A configuration and a model, settled: nothing is "auto" any more, and what cannot work has been
// refused.
#pragma once

#include <cstdint>
#include <string>
#include <vector>

#include "cache/block_shape.h"
#include "cache/block_table.h"
#include "cache/cache_group.h"
#include "cache/recall_store.h"
#include "carousel/config.h"
#include "carousel/model.h"
#include "rope/rope_probe.h"
#include "rope/rope_spec.h"

namespace carousel {

struct EngineSettings {
  EngineConfig config;             // nothing yields any longer
  PositionRules rules;             // rotation and positions in force
  std::string rotation_reason;     // for people
  std::vector<CacheGroup> groups;  // by layer, then by head
  std::vector<BlockShape> shapes;  // [groups]
  RopeSpec rope;                   // [layers]; none rotates where rotation is off
  RopeSpec model_rope;             // [layers], as the model has it, where it is known
  // [groups]: what a layer's sliding window needs between steps; 0: no window, evicted by score.
  std::vector<std::int64_t> window_tokens;
  // [groups]; empty: nothing is evicted. With an adaptive budget the mean of a layer's groups; of a
  // layer with a sliding window what the window holds.
  std::vector<std::int64_t> max_cache_size;
  std::vector<std::int64_t>
      reserved_blocks;           // [groups]: taken at the start, so that nothing fails later
  std::int64_t limit_bytes = 0;  // of the pools, from both limits of the configuration; 0: none
  // One for each KV head of each layer that recalls, in that order; empty: recall is off.
  std::vector<RecallLane> recall_lanes;
};

// What has left a sliding window cannot be seen, so there is nothing to bring back.
inline bool Recalls(const AttentionLayerSpec& layer) { return layer.sliding_window == 0; }

// Throws carousel::Error for what Validate refuses and for what this model makes impossible. Runs
// the probe (some dozens of one-token steps) when something may be evicted, and refuses a model
// whose files declare another RoPE than the probe finds.
EngineSettings Settle(Model& model, const EngineConfig& config);

// What `config` needs to know of the model's RoPE, which takes the probe only where something may
// be evicted.
RopeProbeResult ProbeFor(Model& model, const EngineConfig& config);
// The same with the probe's result given.
EngineSettings Settle(const ModelSpec& spec, const EngineConfig& config,
                      const RopeProbeResult& probe);

}  // namespace carousel
