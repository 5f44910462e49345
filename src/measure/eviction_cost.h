// SPDX-License-Identifier: Apache-2.0
// What an eviction costs by itself, for both ways of rotating.
#pragma once

#include <cstdint>
#include <functional>

#include "carousel/enums.h"
#include "measure/attention_load.h"
#include "measure/statistics.h"

namespace carousel {

struct EvictionCost {
  Spread seconds;                   // per layer
  std::int64_t rewritten_keys = 0;  // tokens whose keys an eviction rewrites, per layer; the mean
};

// A cache of `load.shape.context` tokens in as many layers as threads can run side by side is full;
// what is timed is the planning of a step that appends one block: a block is chosen by SnapKV and
// evicted, with Rotation::kKeys the survivors behind it are rewritten, and new shifts are worked
// out. `on_round` hears which round begins; 0 fills the cache.
EvictionCost MeasureEviction(const AttentionLoad& load, KvType type, Rotation rotation,
                             std::int64_t rounds,
                             const std::function<void(std::int64_t)>& on_round);

}  // namespace carousel
