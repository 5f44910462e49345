// SPDX-License-Identifier: Apache-2.0
// Every knob of the engine. Sizes are in tokens unless the name says otherwise.
#pragma once

#include <cstdint>
#include <optional>
#include <string>

#include "carousel/enums.h"
#include "carousel/eviction_config.h"
#include "carousel/recall_config.h"

namespace carousel {

struct CacheConfig {
  std::int64_t block_size = 32;  // tokens in a block; a multiple of 8, at most 256
  KvType key_type = KvType::kF16;
  KvType value_type = KvType::kF16;
  // Hard limits on what the pool may ever hold, over all layers together (bytes) or per layer
  // (tokens). 0: no limit beyond what the eviction settings and the machine's memory imply.
  std::int64_t limit_bytes = 0;
  std::int64_t limit_tokens = 0;
  friend bool operator==(const CacheConfig&, const CacheConfig&) = default;
};

// Which sizes give way to others and to the model's trained window: defaults, that nobody asked
// for. They are made smaller (never larger) where the window has no room, the block size as well,
// and the start and recent areas where they would fill the cache. Engine::config() has what came of
// it. Sizes that do not yield are refused.
struct YieldingSizes {
  bool block_size = false;
  bool chunk_size = false;
  bool start_size = false;
  bool recent_size = false;
  bool max_cache_size = false;
  friend bool operator==(const YieldingSizes&, const YieldingSizes&) = default;
};
inline constexpr YieldingSizes kAllSizesYield = {true, true, true, true, true};

// Who runs when many sequences want to (docs/architecture.md says how they are chosen).
struct SchedulerConfig {
  std::int64_t max_running = 32;    // requests that move side by side; > 0
  std::int64_t max_waiting = 1024;  // more requests than run, in line for their turn; >= 0
  // Of a step, over all sequences; at least chunk_size + max_running. 0: that.
  std::int64_t max_rows = 0;
  // An answer is the same bit for bit whoever runs beside it: each prompt's chunk has a pass of its
  // own, and answers share passes of a fixed size (docs/decisions/0023-row-bodies.md has the cost).
  bool batch_invariant = false;
  friend bool operator==(const SchedulerConfig&, const SchedulerConfig&) = default;
};

struct EngineConfig {
  CacheConfig cache;
  std::optional<EvictionConfig> eviction = EvictionConfig{};  // nullopt: keep everything
  RecallConfig recall;                                        // only beside eviction
  std::int64_t chunk_size = 256;  // most tokens of a prompt in one step; at least block_size
  YieldingSizes yields;
  // Of an engine: what checkpoints of prompts' beginnings may hold, so that prompts which begin
  // alike are read once. The least recently used go first. 0: none are kept.
  std::int64_t checkpoint_bytes = 0;
  // Of an engine: the folder where blocks lie of sequences that have made room for others, in files
  // without names. Where it is empty, or its disk has no room, they lie in memory.
  std::string swap_directory;
  SchedulerConfig scheduler;
  friend bool operator==(const EngineConfig&, const EngineConfig&) = default;
};

// Throws carousel::Error (kInvalidArgument) that names the first field at fault, its value, the
// limit and the nearest legal value. Needs no model; Engine::Create checks what depends on one, and
// all of it again once the sizes that yield are settled.
void Validate(const EngineConfig& config);

}  // namespace carousel
