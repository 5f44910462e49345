// SPDX-License-Identifier: Apache-2.0
#include "cli/run_summary.h"

#include <nlohmann/json.hpp>

#include "cli/process_memory.h"

namespace carousel {

void AddEngineFigures(const Engine& engine, nlohmann::ordered_json* summary) {
  const EngineMetrics metrics = engine.metrics();
  const EngineConfig& config = engine.config();
  nlohmann::ordered_json& out = *summary;
  out["resident_tokens"] = metrics.resident_tokens;
  out["max_resident_tokens"] = metrics.max_resident_tokens;
  out["evicted_tokens"] = metrics.evicted_tokens;
  out["forgotten_tokens"] = metrics.forgotten_tokens;
  out["evictions"] = metrics.evictions;
  out["tokens_past_window"] = metrics.tokens_past_window;
  out["requantisation_error"] = metrics.requantisation_error;
  out["cache_bytes"] = metrics.cache_bytes;
  out["reserved_bytes"] = metrics.reserved_bytes;
  out["cache_bytes_per_token"] = metrics.cache_bytes_per_token;
  out["rotation"] = Name(metrics.rotation);
  out["positions"] = Name(metrics.positions);
  out["block_size"] = config.cache.block_size;
  out["key_type"] = Name(config.cache.key_type);
  out["value_type"] = Name(config.cache.value_type);
  out["chunk"] = config.chunk_size;
  out["eviction"] = config.eviction.has_value();
  if (config.eviction) {
    out["start_size"] = config.eviction->start_size;
    out["recent_size"] = config.eviction->recent_size;
    out["max_cache_size"] = config.eviction->max_cache_size;
    out["policy"] = config.eviction->policy;
    out["budget"] = Name(config.eviction->budget);
    out["aggregation"] = Name(config.eviction->aggregation);
    out["snapkv_window"] = config.eviction->snapkv_window;
    out["grouping"] = Name(config.eviction->grouping);
    out["prompt_eviction"] = Name(config.eviction->prompt_eviction);
  }
  out["recall_blocks"] = config.recall.blocks;
  if (config.recall.blocks > 0) {
    out["recall_chunk"] = config.recall.chunk;
    out["recall_queries"] = config.recall.queries;
    out["recall_every"] = config.recall.every;
    out["recall_gain"] = config.recall.least_gain;
    out["recall_promotion"] = config.recall.promotion;
    out["recall_stored_tokens"] = metrics.recall_stored_tokens;
    out["recall_dropped_tokens"] = metrics.recall_dropped_tokens;
    out["recall_bytes"] = metrics.recall_bytes;
    out["recall_refused_growths"] = metrics.recall_refused_growths;
    out["recall_limited_by"] = metrics.recall_limited_by;
    out["recalled_blocks"] = metrics.recalled_blocks;
    out["promoted_blocks"] = metrics.promoted_blocks;
    out["recall_seconds"] = metrics.recall_seconds;
  }
  out["attention_seconds"] = metrics.attention_seconds;
  out["forward_seconds"] = metrics.forward_seconds;
  const ProcessMemory memory = ReadProcessMemory();
  out["rss_bytes"] = memory.rss_bytes;
  out["peak_rss_bytes"] = memory.peak_rss_bytes;
  out["model"] = engine.model().spec().name;
}

}  // namespace carousel
