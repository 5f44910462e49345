// SPDX-License-Identifier: Apache-2.0
// What carousel bench can be told.
#pragma once

#include <cstdint>
#include <optional>
#include <string>
#include <vector>

#include "cli/flags.h"
#include "measure/our_attention.h"
#include "measure/sampling_cost.h"

namespace carousel {

// Of a context that is evicted from: one at the start, one that is recent, and two to choose from.
inline constexpr std::int64_t kFewestBlocksToEvict = 4;

struct BenchAttentionFlags {
  bool decode = true;
  bool prompt = true;
  bool eviction = false;
  std::vector<std::int64_t> contexts = {512, 2048, 8192, 32768};  // tokens
  std::int64_t queries = 0;  // of the prompt phase; 0: as many as the context has tokens
  std::vector<KvType> kv_types = {KvType::kF32, KvType::kF16, KvType::kBf16, KvType::kInt8,
                                  KvType::kInt4};
  std::vector<std::int64_t> shifts = {kNoShifts, kShiftInEveryBlock};
  std::string shape_of;  // a model's folder; empty: DefaultAttentionShape
  bool no_openvino = false;
  std::int64_t rounds = 7;
  std::int64_t seconds = 60;
  std::int64_t threads = 0;  // 0: all cores
  std::string json;
};

struct BenchModelFlags {
  ModelFlags model;
  std::vector<std::int64_t> contexts = {512, 2048};  // tokens
  std::int64_t decode_tokens = 64;
  std::optional<std::string> token_ids_file;  // of which each prompt is the beginning; else random
  std::vector<EngineConfig> configs;          // one for each --max-cache-size
  std::vector<NamedSampling> sampling = {SamplingWays().front()};
  std::int64_t rounds = 5;
  std::string json;
};

struct BenchRowsFlags {
  ModelFlags model;
  EngineConfig config;
  std::vector<std::int64_t> rows = {1, 2, 3, 4, 5, 6, 8, 12, 16, 24, 32};
  std::int64_t context = 256;  // tokens of each sequence
  std::int64_t steps = 8;      // of a run
  std::int64_t rounds = 7;
  std::string json;
};

// Ends included.
struct LengthRange {
  std::int64_t least = 0;
  std::int64_t most = 0;
};

struct BenchServeFlags {
  ModelFlags model;
  EngineConfig config;
  std::int64_t requests = 32;
  std::vector<std::int64_t> concurrency = {1, 4, 16};
  LengthRange prompt = {32, 1024};  // tokens; as many between 32 and 64 as between 512 and 1,024
  LengthRange answer = {16, 128};   // tokens
  double rate = 0.0;                // requests that arrive in a second; 0: all at the beginning
  std::int64_t seed = 0;
  std::optional<std::string> load_file;  // in place of all of these
  std::int64_t seconds = 0;   // how long requests come, in place of so many; 0: that many
  double cancel_share = 0.0;  // of them, that are cancelled at some moment; with seconds
  std::string json;
};

struct BenchSamplerFlags {
  std::vector<std::int64_t> vocabularies = {49'152, 262'144};  // words
  std::vector<NamedSampling> sampling = {SamplingWays().begin(), SamplingWays().end()};
  std::int64_t draws = 100;  // a run
  std::int64_t rounds = 21;
  std::string json;
};

}  // namespace carousel
