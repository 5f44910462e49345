// SPDX-License-Identifier: Apache-2.0
#include "config/config_draft.h"

#include "config/sizes.h"

namespace carousel {
namespace {

// Defaults are whole blocks of their own size; another block size makes them whole blocks of that.
void RoundDefaults(EngineConfig* config) {
  const std::int64_t block = config->cache.block_size;
  if (block < 1 || block > kLargestBlock) return;  // is going to be refused
  EvictionConfig& eviction = *config->eviction;
  const auto round = [block](bool is_default, std::int64_t* size) {
    if (is_default) *size = (*size + block - 1) / block * block;
  };
  round(config->yields.start_size, &eviction.start_size);
  round(config->yields.recent_size, &eviction.recent_size);
  round(config->yields.max_cache_size, &eviction.max_cache_size);
}

}  // namespace

void ConfigDraft::NoteGiven(const Setting& setting) {
  if (setting.yields != nullptr) config.yields.*setting.yields = false;
  if (setting.name == "recall_blocks") config.recall.yields = false;
  if (setting.name == "recall_limit_tokens") has_recall_limit_tokens = true;
}

EngineConfig ConfigDraft::Finished() const {
  EngineConfig finished = config;
  RoundDefaults(&finished);
  if (!has_recall_limit_tokens) {
    finished.recall.limit_tokens = finished.recall.limit_bytes == 0
                                       ? DefaultRecallLimit(finished.eviction->max_cache_size)
                                       : 0;
  }
  if (keeps_all) {
    finished.eviction.reset();
    finished.recall = {};
  }
  Validate(finished);
  return finished;
}

}  // namespace carousel
