// SPDX-License-Identifier: Apache-2.0
#include "config/setting_table.h"

#include <fmt/format.h>

#include <algorithm>
#include <limits>
#include <vector>

#include "carousel/defaults.h"
#include "config/members.h"
#include "config/sizes.h"
#include "eviction/registry.h"

namespace carousel {
namespace {

constexpr std::int64_t kAnyBytes = std::numeric_limits<std::int64_t>::max();
constexpr double kMany = 1e6;
constexpr std::int64_t kVeryMany = 1'000'000'000;

constexpr const char* kYielding = "default {}, less where the trained window has no room";

// The names of the policies, one line each.
std::string PolicyLines() {
  std::string lines;
  for (const PolicyEntry& entry : RegisteredPolicies())
    lines += fmt::format("\n{}: {}", entry.name, entry.summary);
  return lines;
}

std::vector<Setting> EvictionSettings() {
  using Eviction = EvictionConfig;
  return {
      {.name = "start_size",
       .flag = "--start-size",
       .value_name = "N",
       .place = At(&Eviction::start_size),
       .range = WholeRange{1, kLargestArea},
       .help = "Tokens at the beginning that are never evicted",
       .default_text = kYielding,
       .depends = true,
       .yields = &YieldingSizes::start_size},
      {.name = "recent_size",
       .flag = "--recent-size",
       .value_name = "N",
       .place = At(&Eviction::recent_size),
       .range = WholeRange{1, kLargestArea},
       .help = "Newest tokens that are never evicted",
       .default_text = kYielding,
       .depends = true,
       .yields = &YieldingSizes::recent_size},
      {.name = "max_cache_size",
       .flag = "--max-cache-size",
       .value_name = "N",
       .common = true,
       .place = At(&Eviction::max_cache_size),
       .range = WholeRange{1, kLargestSize},
       .help = "Tokens kept in each layer; a chunk that is read comes on top",
       .default_text = kYielding,
       .depends = true,
       .yields = &YieldingSizes::max_cache_size},
      {.name = "layer_max_cache_size",
       .place = At(&Eviction::layer_max_cache_size),
       .help = "Tokens kept, layer by layer; none: the same in all",
       .depends = true},
      {.name = "policy",
       .flag = "--policy",
       .value_name = "NAME",
       .place = At(&Eviction::policy),
       .help = "Which blocks are evicted, by one of these rules",
       .more_help = PolicyLines},
      {.name = "aggregation",
       .flag = "--aggregation",
       .value_name = "M",
       .place = ChoiceAt<&Eviction::aggregation>(),
       .help = "snapkv, h2o: how a block's importance adds up: sum, or norm_sum, the mean over the "
               "queries counted since it came"},
      {.name = "snapkv_window",
       .flag = "--snapkv-window",
       .value_name = "N",
       .place = At(&Eviction::snapkv_window),
       .range = WholeRange{0, kLargestSize},
       .help = "snapkv, adaptive_rkv: how many of a chunk's last tokens vote; 0: all"},
      {.name = "pooling_width",
       .flag = "--pooling-width",
       .value_name = "N",
       .place = At(&Eviction::pooling_width),
       .range = WholeRange{1, 1023},
       .help = "snapkv, adaptive_rkv: width in tokens of the pooling over votes; 1: none"},
      {.name = "rkv_attention_mass",
       .flag = "--rkv-attention-mass",
       .value_name = "X",
       .place = At(&Eviction::rkv_attention_mass),
       .range = RealRange{0.0, 1.0},
       .help = "adaptive_rkv: the part of the attention that is saved first"},
      {.name = "rkv_window",
       .flag = "--rkv-window",
       .value_name = "N",
       .place = At(&Eviction::rkv_window),
       .range = WholeRange{1, 1024, RangeText::kFromTo},
       .help = "adaptive_rkv: how many steps are averaged"},
      {.name = "expected_positions",
       .flag = "--expected-positions",
       .value_name = "N",
       .place = At(&Eviction::expected_positions),
       .range = WholeRange{1, 65536, RangeText::kFromTo},
       .help = "expected_attention: how many tokens ahead it looks"},
      {.name = "kvcrush_budget",
       .flag = "--kvcrush-budget",
       .value_name = "N",
       .place = At(&Eviction::kvcrush_budget),
       .range = WholeRange{0, 65536, RangeText::kFromTo},
       .help = "Blocks of the cache that KVCrush chooses, for variety, with any policy but "
               "adaptive_rkv; 0: none"},
      {.name = "kvcrush_anchor",
       .flag = "--kvcrush-anchor",
       .value_name = "A",
       .place = ChoiceAt<&Eviction::kvcrush_anchor>(),
       .help = "What KVCrush compares with: random, zeros, ones, mean, alternating"},
      {.name = "policy_seed",
       .flag = "--policy-seed",
       .value_name = "N",
       .place = At(&Eviction::policy_seed),
       .help = "Seed for policies that choose at random"},
      {.name = "budget",
       .flag = "--budget",
       .value_name = "B",
       .place = ChoiceAt<&Eviction::budget>(),
       .help = "How the cache is split: uniform; pyramid, more for lower layers; adaptive, a "
               "layer's KV heads share by score"},
      {.name = "budget_floor",
       .flag = "--budget-floor",
       .value_name = "X",
       .place = At(&Eviction::budget_floor),
       .range = RealRange{0.0, 1.0},
       .help = "adaptive: the part of its even share that each head keeps"},
      {.name = "budget_slope",
       .flag = "--budget-slope",
       .value_name = "X",
       .place = At(&Eviction::budget_slope),
       .range = RealRange{1.0, kMany},
       .help = "pyramid: how many times smaller than the mean the last layer is"},
      {.name = "grouping",
       .flag = "--eviction-groups",
       .value_name = "G",
       .place = ChoiceAt<&Eviction::grouping>(),
       .help = "What is evicted together: layer, or each KV head on its own: head"},
      {.name = "rotation",
       .flag = "--rotation",
       .value_name = "R",
       .place = ChoiceAt<&Eviction::rotation>(),
       .help = "How the gaps left by evicted blocks are closed: query (the query is turned), keys "
               "(keys are rewritten), off, or auto: query, where the model allows it"},
      {.name = "positions",
       .flag = "--positions",
       .value_name = "P",
       .place = ChoiceAt<&Eviction::positions>(),
       .help = "Where kept tokens stand: keep, compact, or auto: compact with recall, else keep "
               "until the trained window ends"},
      {.name = "prompt_eviction",
       .flag = "--prompt-eviction",
       .value_name = "E",
       .place = ChoiceAt<&Eviction::prompt_eviction>(),
       .help = "When a prompt is evicted: capped (between chunks), at_end"},
  };
}

std::vector<Setting> RecallSettings() {
  using Recall = RecallConfig;
  return {
      {.name = "recall_blocks",
       .flag = "--recall-blocks",
       .value_name = "K",
       .common = true,
       .place = At(&Recall::blocks),
       .range = WholeRange{0, 65536},
       .help = "Evicted blocks that each KV head brings back beside what is resident; 0: off",
       .default_text = "default {}; fewer where the trained window leaves no room, 0 with key "
                       "rotation"},
      {.name = "recall_chunk",
       .flag = "--recall-chunk",
       .value_name = "N",
       .place = At(&Recall::chunk),
       .range = WholeRange{1, kLargestSize},
       .help = "Tokens of a prompt that share a choice of blocks; up to four times as many where a "
               "KV head gains little by choosing"},
      {.name = "recall_queries",
       .flag = "--recall-queries",
       .value_name = "N",
       .place = At(&Recall::queries),
       .range = WholeRange{1, kLargestSize},
       .help = "How many of these tokens choose for all of them: the last ones"},
      {.name = "recall_every",
       .flag = "--recall-every",
       .value_name = "N",
       .place = At(&Recall::every),
       .range = WholeRange{1, kLargestSize},
       .help = "Most tokens of an answer from one choice to the next; 1: each chooses for itself"},
      {.name = "recall_gain",
       .flag = "--recall-gain",
       .value_name = "X",
       .place = At(&Recall::least_gain),
       .range = RealRange{0.0, 1.0},
       .help = "A KV head chooses half as often after a choice that gained it less than this part "
               "of its attention; in an answer, less than five times this part; 0: as often as "
               "it may"},
      {.name = "recall_promotion",
       .flag = "--recall-promotion",
       .value_name = "X",
       .place = At(&Recall::promotion),
       .range = RealRange{.least = 0.0, .most = kMany, .besides = "0 for never"},
       .help = "A recalled block that got X times the attention of a resident one since the last "
               "eviction takes its place in the cache; 0: never"},
      {.name = "recall_store",
       .flag = "--recall-store",
       .value_name = "ram|FILE",
       .place = At(&Recall::store_file),
       .help = "Where evicted blocks are kept: in memory, or in a new file, which is unlinked at "
               "once and takes room until the program ends; where there is no room for more, the "
               "oldest go first",
       .empty_word = "ram"},
      {.name = "recall_limit",
       .flag = "--recall-limit",
       .value_name = "BYTES",
       .place = At(&Recall::limit_bytes),
       .range = WholeRange{0, kAnyBytes},
       .help = "Most memory or disk for evicted blocks, all layers together; the oldest go first",
       .default_text = "default: none",
       .in_bytes = true,
       .zero_is_unset = true},
      {.name = "recall_limit_tokens",
       .flag = "--recall-limit-tokens",
       .value_name = "N",
       .place = At(&Recall::limit_tokens),
       .range = WholeRange{0, kLargestSize},
       .help = "Most evicted tokens that each KV head keeps; the oldest go first; 0: no limit",
       .default_text = fmt::format("default: {} times --max-cache-size; none beside "
                                   "--recall-limit",
                                   kStoredCaches)},
      {.name = "recall_kv_type",
       .flag = "--recall-kv-type",
       .value_name = "T",
       .place = AutoChoiceAt<&Recall::kv_type>(),
       .help = "How evicted blocks are held: auto, f32, f16, bf16, int8, int4",
       .default_text = "default {}: int8, or as in the cache where that is smaller"},
  };
}

std::vector<Setting> CacheSettings() {
  using Cache = CacheConfig;
  return {
      {.name = "block_size",
       .flag = "--block-size",
       .value_name = "N",
       .place = At(&Cache::block_size),
       .range = WholeRange{8, kLargestBlock},
       .help = "Tokens in a block",
       .default_text = kYielding,
       .depends = true,
       .yields = &YieldingSizes::block_size},
      {.name = "key_type",
       .flag = "--kv-type-k",
       .value_name = "T",
       .place = ChoiceAt<&Cache::key_type>(),
       .help = "How keys are held: f32, f16, bf16, int8, int4"},
      {.name = "value_type",
       .flag = "--kv-type-v",
       .value_name = "T",
       .place = ChoiceAt<&Cache::value_type>(),
       .help = "How values are held: f32, f16, bf16, int8, int4"},
      {.name = "limit_bytes",
       .flag = "--cache-limit",
       .value_name = "BYTES",
       .place = At(&Cache::limit_bytes),
       .range = WholeRange{0, kAnyBytes},
       .help = "Most memory for the cache, all layers together; 64M, 1G",
       .default_text = "default: as needed",
       .in_bytes = true,
       .zero_is_unset = true},
      {.name = "limit_tokens",
       .flag = "--cache-limit-tokens",
       .value_name = "N",
       .place = At(&Cache::limit_tokens),
       .range = WholeRange{0, kLargestSize},
       .help = "Hard limit on the tokens in each layer, a chunk that is read included",
       .default_text = "default: as needed",
       .zero_is_unset = true},
      {.name = "chunk_size",
       .flag = "--chunk",
       .value_name = "N",
       .place = At(&EngineConfig::chunk_size),
       .range = WholeRange{8, kLargestChunk},
       .help = "Most tokens of a text in one step",
       .default_text = kYielding,
       .depends = true,
       .yields = &YieldingSizes::chunk_size},
  };
}

std::vector<Setting> SchedulingSettings() {
  using Scheduler = SchedulerConfig;
  return {
      {.name = "max_running",
       .flag = "--concurrency",
       .value_name = "N",
       .common = true,
       .place = At(&Scheduler::max_running),
       .range = WholeRange{1, kMostRequests},
       .help = "Most requests that are answered side by side"},
      {.name = "max_waiting",
       .place = At(&Scheduler::max_waiting),
       .range = WholeRange{0, kVeryMany},
       .help = "Most requests in line for their turn"},
      {.name = "max_rows",
       .flag = "--max-rows",
       .value_name = "N",
       .place = At(&Scheduler::max_rows),
       .range = WholeRange{0, 4 * kLargestChunk},
       .help = "Most tokens of one step, over all requests; at least --chunk + --concurrency",
       .default_text = "default: that",
       .zero_is_unset = true},
      {.name = "checkpoint_bytes",
       .flag = "--checkpoint-limit",
       .value_name = "BYTES",
       .place = At(&EngineConfig::checkpoint_bytes),
       .range = WholeRange{0, kAnyBytes},
       .help = "Most memory for checkpoints, so that prompts which begin alike are read once; 64M, "
               "1G; 0: none are kept",
       .in_bytes = true},
  };
}

std::vector<Setting> SamplingSettings() {
  using Sampling = SamplingParams;
  constexpr RangeText kBracket = RangeText::kBracket;
  return {
      {.name = "temperature",
       .flag = "--temperature",
       .value_name = "X",
       .common = true,
       .place = At(&Sampling::temperature),
       .range = RealRange{0.0, 100.0, kBracket},
       .help = "0: always the likeliest token"},
      {.name = "top_k",
       .flag = "--top-k",
       .value_name = "N",
       .common = true,
       .place = At(&Sampling::top_k),
       .range = WholeRange{0, kVeryMany, kBracket},
       .help = "Sample from the N likeliest; 0: off"},
      {.name = "top_p",
       .flag = "--top-p",
       .value_name = "X",
       .common = true,
       .place = At(&Sampling::top_p),
       .range = RealRange{0.0, 1.0, kBracket, true},
       .help = "Sample from the likeliest that sum to X; 1: off"},
      {.name = "min_p",
       .flag = "--min-p",
       .value_name = "X",
       .place = At(&Sampling::min_p),
       .range = RealRange{0.0, 1.0, kBracket},
       .help = "Drop tokens below X times the likeliest; 0: off"},
      {.name = "repetition_penalty",
       .flag = "--repetition-penalty,--repeat-penalty",
       .value_name = "X",
       .place = At(&Sampling::repetition_penalty),
       .range = RealRange{1e-3, 1e3, kBracket},
       .help = "Divides the logits of tokens seen before; 1: off"},
      {.name = "penalty_window",
       .flag = "--penalty-window,--repeat-last-n",
       .value_name = "N",
       .place = At(&Sampling::penalty_window),
       .range = WholeRange{1, kVeryMany, kBracket},
       .help = "How many tokens back the repetition penalty looks"},
      {.name = "presence_penalty",
       .flag = "--presence-penalty",
       .value_name = "X",
       .place = At(&Sampling::presence_penalty),
       .range = RealRange{-2.0, 2.0, kBracket},
       .help = "Taken from tokens generated before; 0: off"},
      {.name = "frequency_penalty",
       .flag = "--frequency-penalty",
       .value_name = "X",
       .place = At(&Sampling::frequency_penalty),
       .range = RealRange{-2.0, 2.0, kBracket},
       .help = "Taken for each time a token was generated; 0: off"},
      {.name = "seed",
       .flag = "--seed",
       .value_name = "N",
       .common = true,
       .place = At(&Sampling::seed),
       .help = "The same seed gives the same answer"},
      {.name = "logprobs",
       .flag = "--logprobs",
       .value_name = "N",
       .place = At(&Sampling::logprobs),
       .range = WholeRange{0, 20, kBracket},
       .help = "Report the N likeliest tokens at each place in the JSON"},
      {.name = "max_draft_tokens",
       .flag = "--draft-max",
       .value_name = "N",
       .place = At(&Sampling::max_draft_tokens),
       .range = WholeRange{0, 63, kBracket},
       .help = "Guess up to N tokens ahead from what was said before: the same answer, and faster "
               "where it repeats; 0: off"},
      {.name = "draft_ngram",
       .flag = "--draft-ngram",
       .value_name = "N",
       .place = At(&Sampling::draft_ngram),
       .range = WholeRange{1, 32, kBracket},
       .help = "Guess where the last N tokens have stood together before"},
  };
}

std::vector<Setting> AllSettings() {
  std::vector<Setting> all;
  const auto add = [&all](SettingGroup group, const std::vector<Setting>& settings) {
    for (const Setting& setting : settings) {
      all.push_back(setting);
      all.back().group = group;
    }
  };
  add(SettingGroup::kEviction, EvictionSettings());
  add(SettingGroup::kRecall, RecallSettings());
  add(SettingGroup::kCache, CacheSettings());
  add(SettingGroup::kScheduling, SchedulingSettings());
  add(SettingGroup::kSampling, SamplingSettings());
  return all;
}

}  // namespace

std::span<const Setting> SettingTable() {
  static const std::vector<Setting> table = AllSettings();
  return table;
}

const Setting* FindSetting(std::string_view name) {
  const std::span<const Setting> table = SettingTable();
  const auto found = std::find_if(table.begin(), table.end(),
                                  [name](const Setting& setting) { return setting.name == name; });
  return found == table.end() ? nullptr : &*found;
}

}  // namespace carousel
