// SPDX-License-Identifier: Apache-2.0
// What an error proposes in place of what it refuses, and settings that follow it.
#pragma once

#include <cstdint>
#include <cstdlib>
#include <optional>
#include <string>
#include <vector>

#include "carousel/config.h"
#include "carousel/error.h"

namespace carousel {

// The numbers behind the last semicolon of a problem: "... 500 is ...; use 480 or 512".
inline std::vector<double> ProposedNumbers(const std::string& problem) {
  std::vector<double> numbers;
  const std::size_t begin = problem.rfind("; ");
  if (begin == std::string::npos) return numbers;
  const char* at = problem.c_str() + begin;
  while (*at != '\0') {
    char* end = nullptr;
    const bool is_word = at[-1] != ' ';
    const double number = std::strtod(at, &end);
    if (!is_word && end != at && at[0] != ' ') numbers.push_back(number);
    at = end == at || at[0] == ' ' ? at + 1 : end;
  }
  return numbers;
}

// `config` with a proposed number in `field`, which then no longer yields. nullopt: the field is
// not a number.
inline std::optional<EngineConfig> WithField(EngineConfig config, const std::string& field,
                                             double number) {
  const auto whole = static_cast<std::int64_t>(number);
  EvictionConfig any;
  EvictionConfig& eviction = config.eviction ? *config.eviction : any;
  RecallConfig& recall = config.recall;
  YieldingSizes& yields = config.yields;
  const auto size = [whole](std::int64_t* target, bool* may_yield) {
    *target = whole;
    *may_yield = false;
  };
  if (field == "block_size") {
    size(&config.cache.block_size, &yields.block_size);
  } else if (field == "chunk_size") {
    size(&config.chunk_size, &yields.chunk_size);
  } else if (field == "start_size") {
    size(&eviction.start_size, &yields.start_size);
  } else if (field == "recent_size") {
    size(&eviction.recent_size, &yields.recent_size);
  } else if (field == "max_cache_size") {
    size(&eviction.max_cache_size, &yields.max_cache_size);
  } else if (field == "layer_max_cache_size") {
    // The first that is at fault is not known; the largest and all below it may be.
    for (std::int64_t& layer : eviction.layer_max_cache_size) layer = whole;
  } else if (field == "limit_bytes") {
    config.cache.limit_bytes = whole;
  } else if (field == "limit_tokens") {
    config.cache.limit_tokens = whole;
  } else if (field == "snapkv_window") {
    eviction.snapkv_window = whole;
  } else if (field == "pooling_width") {
    eviction.pooling_width = whole;
  } else if (field == "rkv_attention_mass") {
    eviction.rkv_attention_mass = number;
  } else if (field == "rkv_window") {
    eviction.rkv_window = whole;
  } else if (field == "expected_positions") {
    eviction.expected_positions = whole;
  } else if (field == "kvcrush_budget") {
    eviction.kvcrush_budget = whole;
  } else if (field == "budget_floor") {
    eviction.budget_floor = number;
  } else if (field == "budget_slope") {
    eviction.budget_slope = number;
  } else if (field == "recall_blocks") {
    recall.blocks = whole;
    recall.yields = false;
  } else if (field == "recall_every") {
    recall.every = whole;
  } else if (field == "recall_chunk") {
    recall.chunk = whole;
  } else if (field == "recall_queries") {
    recall.queries = whole;
  } else if (field == "recall_limit") {
    recall.limit_bytes = whole;
  } else if (field == "recall_limit_tokens") {
    recall.limit_tokens = whole;
  } else if (field == "recall_gain") {
    recall.least_gain = number;
  } else if (field == "recall_promotion") {
    recall.promotion = number;
  } else {
    return std::nullopt;
  }
  return config;
}

}  // namespace carousel
