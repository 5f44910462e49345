// SPDX-License-Identifier: Apache-2.0
#include "answers/run_summary.h"

#include <nlohmann/json.hpp>

#include "answers/settings_json.h"
#include "measure/process_memory.h"

namespace carousel {

void AddEngineFigures(const SingleSequenceEngine& engine, nlohmann::ordered_json* summary) {
  AddEngineFigures(engine.metrics(), engine.config(), engine.model().spec(), summary);
}

void AddEngineFigures(const SequenceMetrics& metrics, const EngineConfig& config,
                      const ModelSpec& model, nlohmann::ordered_json* summary) {
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
  const SettingsView settings{.engine = &config};
  WriteSettings(SettingGroup::kCache, settings, summary);
  out["chunk"] = config.chunk_size;  // as its flag is called
  WriteSettings(SettingGroup::kEviction, settings, summary);
  // In force, whatever was asked for.
  out["rotation"] = Name(metrics.rotation);
  out["positions"] = Name(metrics.positions);
  out["recall_blocks"] = config.recall.blocks;
  if (config.recall.blocks > 0) {
    WriteSettings(SettingGroup::kRecall, settings, summary);
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
  out["model"] = model.name;
}

}  // namespace carousel
