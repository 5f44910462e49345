// SPDX-License-Identifier: Apache-2.0
#include "carousel/defaults.h"

#include <algorithm>

namespace carousel {

EngineConfig DefaultEngineConfig() {
  EngineConfig config{.yields = kAllSizesYield};
  config.recall.blocks = kRecalledBlocks;
  config.recall.yields = true;
  config.recall.limit_tokens = DefaultRecallLimit(config.eviction->max_cache_size);
  return config;
}

// Cut where the product could overflow: Validate refuses sizes below 1, and nobody has a second
// tier for the others.
std::int64_t DefaultRecallLimit(std::int64_t max_cache_size) {
  constexpr std::int64_t kMost = std::int64_t{1} << 30;
  return std::clamp<std::int64_t>(max_cache_size, 1, kMost) * kStoredCaches;
}

SamplingParams ChatSampling() {
  return {.temperature = 0.6,
          .top_p = 0.9,
          .min_p = 0.05,
          .repetition_penalty = 1.1,
          .penalty_window = 256};
}

}  // namespace carousel
