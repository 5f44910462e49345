// SPDX-License-Identifier: Apache-2.0
// Bytes as settings: Validate accepts them or throws Error, and what it accepts keeps its promises.
#include "base/check.h"
#include "carousel/config.h"
#include "carousel/engine.h"
#include "carousel/error.h"
#include "eviction/budget.h"
#include "eviction/registry.h"
#include "fuzz/fuzz_input.h"
#include "fuzz/fuzz_target.h"

namespace carousel {
namespace {

EngineConfig ReadEngineConfig(FuzzInput* input) {
  EngineConfig config;
  config.cache.block_size = input->Integer();
  config.cache.key_type = input->Choice<KvType>(5);
  config.cache.value_type = input->Choice<KvType>(5);
  config.cache.limit_bytes = input->Integer();
  config.cache.limit_tokens = input->Integer();
  config.chunk_size = input->Integer();
  if (input->Bits(1) % 4 == 0) {
    config.eviction.reset();
    return config;
  }
  EvictionConfig& eviction = *config.eviction;
  eviction.start_size = input->Integer();
  eviction.recent_size = input->Integer();
  eviction.max_cache_size = input->Integer();
  // Mostly a name that there is.
  constexpr const char* kPolicies[] = {"snapkv",       "h2o",     "tova",   "window",
                                       "keynorm",      "keydiff", "random", "expected_attention",
                                       "adaptive_rkv", "",        "lru"};
  eviction.policy = kPolicies[input->Bits(1) % std::size(kPolicies)];
  eviction.policy_seed = input->Bits(8);
  eviction.rkv_attention_mass = input->Real();
  eviction.rkv_window = input->Integer();
  eviction.expected_positions = input->Integer();
  eviction.kvcrush_budget = input->Integer();
  eviction.kvcrush_anchor = input->Choice<KvCrushAnchor>(5);
  eviction.budget = input->Choice<Budget>(3);
  eviction.budget_floor = input->Real();
  eviction.budget_slope = input->Real();
  eviction.aggregation = input->Choice<Aggregation>(2);
  eviction.snapkv_window = input->Integer();
  eviction.pooling_width = input->Integer();
  eviction.rotation = input->Choice<Rotation>(4);
  eviction.positions = input->Choice<PositionPolicy>(3);
  eviction.prompt_eviction = input->Choice<PromptEviction>(2);
  eviction.grouping = input->Choice<Grouping>(2);
  for (std::uint64_t layers = input->Bits(1) % 4; layers > 0; --layers)
    eviction.layer_max_cache_size.push_back(input->Integer());
  RecallConfig& recall = config.recall;
  recall.blocks = input->Integer();
  recall.every = input->Integer();
  recall.queries = input->Integer();
  recall.limit_bytes = input->Integer();
  recall.limit_tokens = input->Integer();
  recall.yields = input->Bits(1) % 2 == 1;
  if (input->Bits(1) % 2 == 1) recall.kv_type = input->Choice<KvType>(5);
  recall.chunk = input->Integer();
  recall.least_gain = input->Real();
  recall.promotion = input->Real();
  return config;
}

SamplingParams ReadSamplingParams(FuzzInput* input) {
  SamplingParams params;
  params.temperature = input->Real();
  params.top_k = input->Integer();
  params.top_p = input->Real();
  params.min_p = input->Real();
  params.repetition_penalty = input->Real();
  params.presence_penalty = input->Real();
  params.frequency_penalty = input->Real();
  params.penalty_window = input->Integer();
  params.logprobs = input->Integer();
  return params;
}

// Whether Validate accepts. What it refuses it names.
template <typename Settings>
bool Accepts(const Settings& settings) {
  try {
    Validate(settings);
  } catch (const Error& error) {
    CAROUSEL_CHECK(error.code() == ErrorCode::kInvalidArgument);
    CAROUSEL_CHECK(!error.field().empty() && !error.problem().empty());
    return false;
  }
  return true;
}

// What include/carousel/config.h promises of accepted sizes.
void CheckAccepted(const EngineConfig& config) {
  const std::int64_t block = config.cache.block_size;
  CAROUSEL_CHECK(block > 0 && block <= 256 && block % 8 == 0);
  CAROUSEL_CHECK_GE(config.chunk_size, block);
  CAROUSEL_CHECK(config.cache.limit_bytes >= 0 && config.cache.limit_tokens >= 0);
  if (!config.eviction) return;
  const EvictionConfig& eviction = *config.eviction;
  for (const std::int64_t size :
       {eviction.start_size, eviction.recent_size, eviction.max_cache_size})
    CAROUSEL_CHECK(size > 0 && size % block == 0);
  CAROUSEL_CHECK_GT(eviction.max_cache_size, eviction.start_size + eviction.recent_size);
  CAROUSEL_CHECK(eviction.pooling_width % 2 == 1);
  CAROUSEL_CHECK(FindPolicy(eviction.policy) != nullptr);
  CAROUSEL_CHECK(eviction.rkv_attention_mass >= 0.0 && eviction.rkv_attention_mass <= 1.0);
  CAROUSEL_CHECK(eviction.rkv_window > 0 && eviction.expected_positions > 0);
  CAROUSEL_CHECK(eviction.kvcrush_budget >= 0);
  CAROUSEL_CHECK(eviction.kvcrush_budget == 0 || eviction.policy != "adaptive_rkv");
  CAROUSEL_CHECK(eviction.budget_floor >= 0.0 && eviction.budget_floor <= 1.0);
  CAROUSEL_CHECK(eviction.budget_slope >= 1.0);
  // Whatever the split, it gives out what there is, in whole blocks, and each layer can evict.
  if (eviction.layer_max_cache_size.empty()) {
    std::int64_t total = 0;
    for (const std::int64_t size : LayerSizes(eviction, 7, block)) {
      CAROUSEL_CHECK(size % block == 0 && size > eviction.start_size + eviction.recent_size);
      total += size / block;
    }
    CAROUSEL_CHECK_EQ(total, 7 * (eviction.max_cache_size / block));
  }
  for (const std::int64_t size : eviction.layer_max_cache_size)
    CAROUSEL_CHECK(size % block == 0 && size > eviction.start_size + eviction.recent_size);
  CAROUSEL_CHECK(config.recall.blocks >= 0 && config.recall.limit_bytes >= 0);
  CAROUSEL_CHECK(config.recall.limit_tokens == 0 || config.recall.limit_tokens >= block ||
                 config.recall.blocks == 0);
  CAROUSEL_CHECK(config.recall.every > 0 && config.recall.queries > 0 && config.recall.chunk > 0);
  CAROUSEL_CHECK(config.recall.least_gain >= 0.0 && config.recall.least_gain <= 1.0);
  CAROUSEL_CHECK(config.recall.promotion >= 0.0);  // no NaN
}

void CheckAccepted(const SamplingParams& params) {
  CAROUSEL_CHECK_GE(params.temperature, 0.0);
  CAROUSEL_CHECK(params.top_p > 0.0 && params.top_p <= 1.0);
  CAROUSEL_CHECK(params.min_p >= 0.0 && params.min_p <= 1.0);
  CAROUSEL_CHECK_GT(params.repetition_penalty, 0.0);
  CAROUSEL_CHECK(params.presence_penalty >= -2.0 && params.presence_penalty <= 2.0);
  CAROUSEL_CHECK(params.frequency_penalty >= -2.0 && params.frequency_penalty <= 2.0);
  CAROUSEL_CHECK(params.top_k >= 0 && params.penalty_window > 0);
  CAROUSEL_CHECK(params.logprobs >= 0 && params.logprobs <= 20);
}

}  // namespace

std::vector<std::string> FuzzSeeds() {
  // Each number below 128 stands for its eightfold: blocks of 32, chunks of 256, 32/128/672; snapkv
  // with a window of 8 and, as two bytes over 1000, a pooling of 7; an even budget; 16 recalled.
  const std::string cache{4, 1, 1, 0, 0, 32, 1, 4, 16, 84};
  const std::string policy{0, 0, 0, 0, 0, 0, 0, 0, 0, 58, 1, 64, 0, 0, 0, 13, 127};
  const std::string votes{1, 1, static_cast<char>(0x80), static_cast<char>(0xEF), 3, 1, 2, 0, 0, 0};
  const std::string recall{2, 1, 1, 0, 0, 0, 0};
  const std::string config = cache + policy + votes + recall;
  const std::string sampling{32, 5, 58, 3, 70, 0, 0, 32, 2};
  return {config + sampling, config, std::string(30, '\0'), std::string(80, '\x7F')};
}

}  // namespace carousel

extern "C" int LLVMFuzzerTestOneInput(const std::uint8_t* data, std::size_t size) {
  using namespace carousel;
  FuzzInput input(data, size);
  const EngineConfig config = ReadEngineConfig(&input);
  if (Accepts(config)) CheckAccepted(config);
  const SamplingParams params = ReadSamplingParams(&input);
  if (Accepts(params)) CheckAccepted(params);
  return 0;
}
