// SPDX-License-Identifier: Apache-2.0
// What is evicted, when, and by whom. Sizes are in tokens unless the name says otherwise.
#pragma once

#include <cstdint>
#include <string>
#include <vector>

#include "carousel/enums.h"

namespace carousel {

// Eviction with openvino.genai's areas (start, evictable, recent) and its default sizes, and what
// the policies take besides. Which policy is the default, and why: docs/decisions/0011-policies.md.
struct EvictionConfig {
  std::int64_t start_size = 32;    // attention sinks, never evicted; multiple of block_size, > 0
  std::int64_t recent_size = 128;  // the newest tokens, never evicted; multiple of block_size, > 0
  // Of layers without a sliding window: those with one keep all that their queries can see.
  std::int64_t max_cache_size =
      672;  // per layer and KV head; multiple of block_size, > start_size + recent_size
  // Who goes: a name of src/eviction/registry.h, where --help-all has a line for each.
  std::string policy = "tova";
  std::uint64_t policy_seed = 0;                    // random, KVCrush's random anchor
  Aggregation aggregation = Aggregation::kNormSum;  // snapkv, h2o
  // snapkv, adaptive_rkv: how many of a chunk's (kAtEnd: of the prompt's) last queries vote; 0: all
  // of them, in snapkv unpooled.
  std::int64_t snapkv_window = 8;
  // Width in tokens of the max-pooling over neighbours that SnapKV applies to votes; odd, 1: none.
  std::int64_t pooling_width = 7;
  double rkv_attention_mass = 0.9;  // adaptive_rkv: the part that attention alone saves; [0, 1]
  std::int64_t rkv_window = 8;      // adaptive_rkv: steps that are averaged; in [1, 1024]
  std::int64_t expected_positions = 512;  // expected_attention: how far ahead; in [1, 65536]
  // Blocks of the cache that KVCrush chooses, within a group; 0: none. Not with adaptive_rkv.
  std::int64_t kvcrush_budget = 0;
  KvCrushAnchor kvcrush_anchor = KvCrushAnchor::kRandom;
  Budget budget = Budget::kUniform;
  // adaptive: the part of its even share of the evictable area that each head keeps; [0, 1].
  double budget_floor = 0.2;
  // pyramid: how many times smaller than the mean the smallest evictable area is; >= 1.
  double budget_slope = 20.0;
  Rotation rotation = Rotation::kAuto;
  PositionPolicy positions = PositionPolicy::kAuto;
  PromptEviction prompt_eviction = PromptEviction::kCapped;
  Grouping grouping = Grouping::kLayer;
  // Overrides max_cache_size layer by layer; empty: the same for all. Same rules as max_cache_size.
  std::vector<std::int64_t> layer_max_cache_size;
  friend bool operator==(const EvictionConfig&, const EvictionConfig&) = default;
};

}  // namespace carousel
