// SPDX-License-Identifier: Apache-2.0
// What settings may be together. What each may be by itself is in the table of settings.
#include <fmt/format.h>

#include <algorithm>
#include <string>

#include "cache/plane_layout.h"
#include "carousel/beam_params.h"
#include "carousel/config.h"
#include "carousel/error.h"
#include "carousel/request.h"
#include "config/setting_value.h"
#include "config/sizes.h"
#include "eviction/registry.h"

namespace carousel {
namespace {

[[noreturn]] void Refuse(std::string_view field, const std::string& problem) {
  throw Error(ErrorCode::kInvalidArgument, field, problem);
}

void CheckRange(std::string_view field, std::int64_t value, std::int64_t least, std::int64_t most) {
  if (value < least) Refuse(field, fmt::format("{} is too small; the least is {}", value, least));
  if (value > most) Refuse(field, fmt::format("{} is too large; the most is {}", value, most));
}

// Whole blocks. What is proposed in place of others is from `least`, whole blocks as well, to
// `most`; the caller refuses whole blocks below `least`.
void CheckMultiple(std::string_view field, std::int64_t value, std::int64_t block_size,
                   std::int64_t least, std::int64_t most) {
  most = most / block_size * block_size;
  if (value < 1) Refuse(field, fmt::format("{} is too small; the least is {}", value, least));
  if (value > most) Refuse(field, fmt::format("{} is too large; the most is {}", value, most));
  if (value % block_size == 0) return;
  const std::int64_t below = value / block_size * block_size;
  const std::string nearest = below < least ? fmt::format("{}", std::max(below + block_size, least))
                                            : fmt::format("{} or {}", below, below + block_size);
  Refuse(field, fmt::format("{} is not a multiple of the block size {}; use {}", value, block_size,
                            nearest));
}

// The least that the areas in which nothing is evicted can come to, and a block.
struct LeastSizes {
  std::int64_t start = 0;
  std::int64_t recent = 0;
  std::int64_t block = 0;
};

LeastSizes LeastOf(const EngineConfig& config) {
  const YieldingSizes& yields = config.yields;
  const std::int64_t block =
      yields.block_size ? KeyTokensMultiple(config.cache.key_type) : config.cache.block_size;
  return {.start = yields.start_size ? block : config.eviction->start_size,
          .recent = yields.recent_size ? block : config.eviction->recent_size,
          .block = block};
}

void CheckBudget(std::string_view field, std::int64_t size, const LeastSizes& sizes,
                 std::int64_t block_size) {
  const std::int64_t needed = sizes.start + sizes.recent + sizes.block;
  const std::int64_t least = (needed + block_size - 1) / block_size * block_size;
  CheckMultiple(field, size, block_size, least, kLargestSize);
  if (size < needed) {
    Refuse(field, fmt::format(
                      "{} leaves nothing to evict between start_size {} and recent_size {}; use at "
                      "least {}",
                      size, sizes.start, sizes.recent, least));
  }
}

void ValidateEviction(const EngineConfig& config) {
  const EvictionConfig& eviction = *config.eviction;
  const std::int64_t block_size = config.cache.block_size;
  CheckMultiple("start_size", eviction.start_size, block_size, block_size, kLargestArea);
  CheckMultiple("recent_size", eviction.recent_size, block_size, block_size, kLargestArea);
  const LeastSizes least = LeastOf(config);
  CheckBudget("max_cache_size", eviction.max_cache_size, least, block_size);
  for (const std::int64_t size : eviction.layer_max_cache_size)
    CheckBudget("layer_max_cache_size", size, least, block_size);
  CheckRanges(SettingGroup::kEviction, {.engine = &config});
  if (eviction.pooling_width % 2 == 0) {
    Refuse("pooling_width", fmt::format("{} is even; use {} or {}", eviction.pooling_width,
                                        eviction.pooling_width - 1, eviction.pooling_width + 1));
  }
  ValidatePolicy(eviction);
  if (eviction.budget == Budget::kPyramid && !eviction.layer_max_cache_size.empty())
    Refuse("layer_max_cache_size", "says each layer's size, and so does budget pyramid; use one");
}

void ValidateRecall(const EngineConfig& config) {
  const RecallConfig& recall = config.recall;
  CheckRanges(SettingGroup::kRecall, {.engine = &config});
  if (recall.blocks == 0) return;
  if (!config.eviction) {
    Refuse("recall_blocks", fmt::format("{} blocks cannot be brought back where nothing is evicted;"
                                        " use 0, or turn eviction on",
                                        recall.blocks));
  }
  if (recall.limit_tokens > 0 && recall.limit_tokens < config.cache.block_size) {
    Refuse("recall_limit_tokens",
           fmt::format("{} is less than a block of {} tokens; use at least {}, or 0 for no limit",
                       recall.limit_tokens, config.cache.block_size, config.cache.block_size));
  }
  const std::int64_t multiple = recall.kv_type ? KeyTokensMultiple(*recall.kv_type) : 1;
  if (config.cache.block_size % multiple != 0) {
    Refuse("recall_kv_type",
           fmt::format("{} does not go with a block size of {}: it packs {} tokens at a time; use "
                       "int8, or a block size that is a multiple of {}",
                       Name(*recall.kv_type), config.cache.block_size, multiple, multiple));
  }
}

}  // namespace

void Validate(const EngineConfig& config) {
  const CacheConfig& cache = config.cache;
  const std::int64_t multiple = KeyTokensMultiple(cache.key_type);
  CheckRange("block_size", cache.block_size, multiple, kLargestBlock);
  if (cache.block_size % multiple != 0) {
    const std::int64_t below = cache.block_size / multiple * multiple;
    Refuse("block_size",
           fmt::format("{} is not a multiple of {}, as {} keys are packed; use {} or {}",
                       cache.block_size, multiple, Name(cache.key_type), below, below + multiple));
  }
  CheckRanges(SettingGroup::kCache, {.engine = &config});
  CheckRanges(SettingGroup::kScheduling, {.engine = &config});
  CheckRange("chunk_size", config.chunk_size, cache.block_size, kLargestChunk);
  if (config.eviction) ValidateEviction(config);
  ValidateRecall(config);
}

void Validate(const SamplingParams& params) {
  CheckRanges(SettingGroup::kSampling, {.sampling = &params});
}

void Validate(const BeamParams& params) {
  CheckRanges(SettingGroup::kBeams, {.beams = &params});
  const std::int64_t beams = params.num_beams;
  const auto require_at_most_beams = [beams](std::string_view field, std::int64_t value) {
    if (value >= 1 && value <= beams) return;
    Refuse(field, fmt::format("{} is out of range with {} of num_beams; use a number from 1 to {}, "
                              "or more beams",
                              value, beams, beams));
  };
  const std::int64_t groups = params.num_beam_groups;
  require_at_most_beams("num_beam_groups", groups);
  require_at_most_beams("num_return_sequences", params.num_return_sequences);
  if (beams % groups != 0) {
    const std::int64_t below = beams / groups * groups;
    const std::string mend = below + groups > kMostBeams
                                 ? fmt::format("{}", below)
                                 : fmt::format("{} or {}", below, below + groups);
    Refuse("num_beam_groups",
           fmt::format("{} groups do not divide the {} of num_beams evenly; use {} beams", groups,
                       beams, mend));
  }
  if (groups > 1 && params.diversity_penalty == 0.0) {
    Refuse("diversity_penalty",
           fmt::format("0 keeps {} groups from differing; use a number above 0, or one group",
                       groups));
  }
}

void ValidateForBeams(const SamplingParams& sampling) {
  Validate(sampling);
  if (sampling.temperature > 0.0) {
    Refuse("temperature", fmt::format("{} samples, and a beam search takes the likeliest; use 0",
                                      sampling.temperature));
  }
  const auto refuse_penalty = [](std::string_view field, double value, double off) {
    if (value == off) return;
    Refuse(field, fmt::format("{} has no place in a beam search; use {}, and no_repeat_ngram_size "
                              "against repeats",
                              value, off));
  };
  refuse_penalty("repetition_penalty", sampling.repetition_penalty, 1.0);
  refuse_penalty("presence_penalty", sampling.presence_penalty, 0.0);
  refuse_penalty("frequency_penalty", sampling.frequency_penalty, 0.0);
  if (sampling.max_draft_tokens > 0) {
    Refuse("max_draft_tokens",
           fmt::format("{} tokens cannot be guessed ahead in a beam search; use 0",
                       sampling.max_draft_tokens));
  }
  if (sampling.logprobs > 0) {
    Refuse("logprobs", fmt::format("the {} likeliest tokens are not kept in a beam search; use 0",
                                   sampling.logprobs));
  }
}

}  // namespace carousel
