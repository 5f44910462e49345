// SPDX-License-Identifier: Apache-2.0
#include "cli/flags.h"

#include <fmt/format.h>
#include <fmt/ranges.h>

#include <algorithm>
#include <string_view>

#include "eviction/registry.h"

namespace carousel {
namespace {

constexpr std::string_view kEvictionHeading = "Eviction";

// What the parser of the command line accepts before Validate has its say: whole numbers that no
// sum of sizes overflows. Validate knows the rest and says it better.
constexpr IntegerRange kAnySize{INT64_MIN, INT64_MAX};

std::optional<Precision> ParsePrecision(const std::string& name) {
  if (name == "f32") return Precision::kF32;
  if (name == "bf16") return Precision::kBf16;
  if (name == "int8") return Precision::kInt8;
  return std::nullopt;
}

std::string WithDefault(std::string_view description, const auto& value) {
  return fmt::format("{} (default {})", description, value);
}

// Of a size; see YieldingSizes.
std::string WithYieldingDefault(std::string_view description, std::int64_t size) {
  return fmt::format("{} (default {}, less where the trained window has no room)", description,
                     size);
}

// The names of --policy, one line each.
std::string PolicyLines(std::string_view chosen) {
  std::string lines = WithDefault("Who is evicted, one of these", chosen);
  for (const PolicyEntry& entry : RegisteredPolicies())
    lines += fmt::format("\n{}: {}", entry.name, entry.summary);
  return lines;
}

// What the policies and budgets can be told.
void AddPolicyFlags(FlagSet* flags, EvictionConfig* eviction) {
  flags->Text({"--policy", "NAME", PolicyLines(eviction->policy)}, &eviction->policy);
  flags->Choice(
      {"--aggregation", "M",
       WithDefault("How a block's importance adds up: sum, norm_sum", Name(eviction->aggregation))},
      {"sum", "norm_sum"}, ParseAggregation, &eviction->aggregation);
  flags->Integer(
      {"--snapkv-window", "N",
       WithDefault("How many of a chunk's last tokens vote; 0: all", eviction->snapkv_window)},
      kAnySize, &eviction->snapkv_window);
  flags->Integer(
      {"--pooling-width", "N",
       WithDefault("Width in tokens of the pooling over votes; 1: none", eviction->pooling_width)},
      kAnySize, &eviction->pooling_width);
  flags->Real({"--rkv-attention-mass", "X",
               WithDefault("adaptive_rkv: the part of the attention that is saved first",
                           eviction->rkv_attention_mass)},
              &eviction->rkv_attention_mass);
  flags->Integer({"--rkv-window", "N",
                  WithDefault("adaptive_rkv: how many steps are averaged", eviction->rkv_window)},
                 kAnySize, &eviction->rkv_window);
  flags->Integer({"--expected-positions", "N",
                  WithDefault("expected_attention: how many tokens ahead it looks",
                              eviction->expected_positions)},
                 kAnySize, &eviction->expected_positions);
  flags->Integer({"--kvcrush-budget", "N",
                  WithDefault("Blocks of the cache that KVCrush chooses, for variety; 0: none",
                              eviction->kvcrush_budget)},
                 kAnySize, &eviction->kvcrush_budget);
  flags->Choice({"--kvcrush-anchor", "A",
                 WithDefault("What KVCrush compares with: random, zeros, ones, mean, alternating",
                             Name(eviction->kvcrush_anchor))},
                {"random", "zeros", "ones", "mean", "alternating"}, ParseKvCrushAnchor,
                &eviction->kvcrush_anchor);
  flags->Unsigned(
      {"--policy-seed", "N", WithDefault("Of what policies draw by chance", eviction->policy_seed)},
      &eviction->policy_seed);
  flags->Choice({"--budget", "B",
                 WithDefault("How the cache is split: uniform; pyramid, more for lower layers; "
                             "adaptive, a layer's KV heads share by score",
                             Name(eviction->budget))},
                {"uniform", "pyramid", "adaptive"}, ParseBudget, &eviction->budget);
  flags->Real({"--budget-floor", "X",
               WithDefault("adaptive: the part of its even share that each head keeps",
                           eviction->budget_floor)},
              &eviction->budget_floor);
  flags->Real({"--budget-slope", "X",
               WithDefault("pyramid: how many times smaller than the mean the last layer is",
                           eviction->budget_slope)},
              &eviction->budget_slope);
}

void AddEvictionFlags(FlagSet* flags, CacheFlagChoice choice, CacheFlags* target) {
  EvictionConfig& eviction = *target->config.eviction;
  YieldingSizes& yields = target->config.yields;
  flags->Heading(std::string(kEvictionHeading));
  flags->YieldingInteger(
      {"--start-size", "N",
       WithYieldingDefault("Tokens at the beginning that are never evicted", eviction.start_size)},
      kAnySize, &eviction.start_size, &yields.start_size);
  flags->YieldingInteger(
      {"--recent-size", "N",
       WithYieldingDefault("Newest tokens that are never evicted", eviction.recent_size)},
      kAnySize, &eviction.recent_size, &yields.recent_size);
  if (choice.one_size) {
    flags->YieldingInteger(
        {"--max-cache-size", "N",
         WithYieldingDefault("Most tokens in the cache, in each layer", eviction.max_cache_size)},
        kAnySize, &eviction.max_cache_size, &yields.max_cache_size);
  }
  AddPolicyFlags(flags, &eviction);
  flags->Choice({"--eviction-groups", "G",
                 WithDefault("What is evicted together: layer, or each KV head on its own: head",
                             Name(eviction.grouping)),
                 "grouping"},
                {"layer", "head"}, ParseGrouping, &eviction.grouping);
  flags->Choice({"--rotation", "R",
                 WithDefault("How survivors reach new positions: auto, query, keys, off",
                             Name(eviction.rotation))},
                {"auto", "query", "keys", "off"}, ParseRotation, &eviction.rotation);
  flags->Choice(
      {"--positions", "P",
       WithDefault(
           "Where kept tokens stand: keep, compact, or auto: compact with recall, else keep "
           "until the trained window ends",
           Name(eviction.positions))},
      {"auto", "keep", "compact"}, ParsePositionPolicy, &eviction.positions);
  if (choice.prompt_eviction) {
    flags->Choice({"--prompt-eviction", "E",
                   WithDefault("When a prompt is evicted: capped (between chunks), at_end",
                               Name(eviction.prompt_eviction))},
                  {"capped", "at_end"}, ParsePromptEviction, &eviction.prompt_eviction);
  }
}

constexpr std::string_view kRecallHeading = "Recall";

void AddRecallFlags(FlagSet* flags, CacheFlags* target) {
  RecallConfig& recall = target->config.recall;
  flags->Heading(std::string(kRecallHeading));
  flags->OptionalInteger(
      {"--recall-blocks", "K",
       fmt::format("Evicted blocks that each KV head brings back beside what is resident; 0: off "
                   "(default {}; fewer where the trained window leaves no room, 0 with key "
                   "rotation)",
                   kRecalledBlocks)},
      kAnySize, &target->recall_blocks);
  flags->Integer({"--recall-chunk", "N",
                  WithDefault("Tokens of a prompt that share a choice of blocks; up to four times "
                              "as many where a KV head gains little by choosing",
                              recall.chunk)},
                 kAnySize, &recall.chunk);
  flags->Integer({"--recall-queries", "N",
                  WithDefault("How many of these tokens choose for all of them: the last ones",
                              recall.queries)},
                 kAnySize, &recall.queries);
  flags->Integer({"--recall-every", "N",
                  WithDefault("Most tokens of an answer from one choice to the next; 1: each "
                              "chooses for itself",
                              recall.every)},
                 kAnySize, &recall.every);
  flags->Real({"--recall-gain", "X",
               WithDefault("A KV head whose choice gains less of its attention chooses half as "
                           "often; 0: as often as it may",
                           recall.least_gain)},
              &recall.least_gain);
  flags->Real({"--recall-promotion", "X",
               WithDefault("A recalled block that got X times the attention of a resident one "
                           "since the last eviction takes its place in the cache; 0: never",
                           recall.promotion)},
              &recall.promotion);
  flags->Text({"--recall-store", "ram|FILE",
               "Where evicted blocks are kept: in memory, or in a new file that has no name while "
               "it is used and is gone with the program; where there is no room for more, the "
               "oldest go first (default ram)"},
              &target->recall_store);
  flags->Bytes({"--recall-limit", "BYTES",
                "Most memory or disk for evicted blocks, all layers together; the oldest go first "
                "(default: none)"},
               &recall.limit_bytes);
  flags->OptionalInteger(
      {"--recall-limit-tokens", "N",
       fmt::format("Most evicted tokens that each KV head keeps; the oldest go first; 0: no limit "
                   "(default: {} times --max-cache-size; none beside --recall-limit)",
                   kStoredCaches)},
      kAnySize, &target->recall_limit_tokens);
  std::vector<std::string> types = KvTypeNames();
  types.insert(types.begin(), "auto");
  flags->Choice(
      {"--recall-kv-type", "T",
       fmt::format("How evicted blocks are held: {} (default auto: int8, or as in the cache where "
                   "that is smaller)",
                   fmt::join(types, ", "))},
      types,
      [](const std::string& name) {
        return std::make_optional(name == "auto" ? std::nullopt : ParseKvType(name));
      },
      &recall.kv_type);
}

}  // namespace

void AddModelFlags(FlagSet* flags, ModelFlags* target) {
  flags->Heading("Model");
  flags->Text({"--model", "DIR", WithDefault("Folder of the OpenVINO IR model", target->directory)},
              &target->directory);
  flags->Integer({"--threads", "N", "CPU threads; 0: all cores (default 0)"}, {0, 1024},
                 &target->threads);
  flags->Choice({"--precision", "P",
                 "What the model computes in: f32, bf16, or int8, f32 with activations rounded "
                 "where weights are "
                 "quantised: faster prompts on CPUs with VNNI, less exact (default f32)"},
                {"f32", "bf16", "int8"}, ParsePrecision, &target->precision);
}

const std::vector<std::string>& KvTypeNames() {
  static const std::vector<std::string> names = {"f32", "f16", "bf16", "int8", "int4"};
  return names;
}

void AddCacheFlags(FlagSet* flags, CacheFlagChoice choice, CacheFlags* target) {
  AddEvictionFlags(flags, choice, target);
  AddRecallFlags(flags, target);
  CacheConfig& cache = target->config.cache;
  const std::string types = fmt::format("{}", fmt::join(KvTypeNames(), ", "));
  flags->Heading("Cache");
  if (choice.one_size)
    flags->Switch({"--no-eviction", "", "Keep every token"}, &target->no_eviction);
  YieldingSizes& yields = target->config.yields;
  flags->YieldingInteger(
      {"--block-size", "N", WithYieldingDefault("Tokens in a block", cache.block_size)}, kAnySize,
      &cache.block_size, &yields.block_size);
  flags->Choice({"--kv-type-k", "T",
                 WithDefault("How keys are held: " + types, Name(cache.key_type)), "key_type"},
                KvTypeNames(), ParseKvType, &cache.key_type);
  flags->Choice(
      {"--kv-type-v", "T", WithDefault("How values are held: " + types, Name(cache.value_type)),
       "value_type"},
      KvTypeNames(), ParseKvType, &cache.value_type);
  flags->Bytes({"--cache-limit", "BYTES",
                "Most memory for the cache, all layers together; 64M, 1G (default: as needed)",
                "limit_bytes"},
               &cache.limit_bytes);
  flags->Integer({"--cache-limit-tokens", "N",
                  "Most tokens that the cache may ever hold, in each layer (default: as needed)",
                  "limit_tokens"},
                 {1, INT64_MAX}, &cache.limit_tokens);
  flags->YieldingInteger(
      {"--chunk", "N",
       WithYieldingDefault("Most tokens of a text in one step", target->config.chunk_size),
       "chunk_size"},
      kAnySize, &target->config.chunk_size, &yields.chunk_size);
}

void AddSamplingFlags(FlagSet* flags, SamplingFlags* target) {
  SamplingParams& params = target->params;
  flags->Heading("Sampling");
  flags->Integer(
      {"--max-new-tokens", "N", WithDefault("Most tokens of an answer", target->max_new_tokens)},
      {1, INT64_MAX}, &target->max_new_tokens);
  flags->Real(
      {"--temperature", "X", WithDefault("0: always the likeliest token", params.temperature)},
      &params.temperature);
  flags->Integer({"--top-k", "N", WithDefault("Sample from the N likeliest; 0: off", params.top_k)},
                 kAnySize, &params.top_k);
  flags->Real({"--top-p", "X",
               WithDefault("Sample from the likeliest that sum to X; 1: off", params.top_p)},
              &params.top_p);
  flags->Real({"--min-p", "X",
               WithDefault("Drop tokens below X times the likeliest; 0: off", params.min_p)},
              &params.min_p);
  flags->Real(
      {"--repetition-penalty,--repeat-penalty", "X",
       WithDefault("Divides the logits of tokens seen before; 1: off", params.repetition_penalty)},
      &params.repetition_penalty);
  flags->Integer(
      {"--penalty-window,--repeat-last-n", "N",
       WithDefault("How many tokens back the repetition penalty looks", params.penalty_window)},
      kAnySize, &params.penalty_window);
  flags->Real({"--presence-penalty", "X",
               WithDefault("Taken from tokens generated before; 0: off", params.presence_penalty)},
              &params.presence_penalty);
  flags->Real(
      {"--frequency-penalty", "X",
       WithDefault("Taken for each time a token was generated; 0: off", params.frequency_penalty)},
      &params.frequency_penalty);
  flags->Unsigned({"--seed", "N", WithDefault("The same seed gives the same answer", params.seed)},
                  &params.seed);
  flags->Texts({"--stop", "TEXT", "End the answer before this text; may be given more than once"},
               &target->stops);
}

void AddPinSystemFlag(FlagSet* flags, bool* target) {
  flags->Switch({"--pin-system", "", "Never evict the system message", "pinned"}, target);
}

void AddJsonFlag(FlagSet* flags, const std::string& description, std::string* target) {
  flags->Text({"--json", "FILE", description}, target);
}

namespace {

// Cut where the product could overflow: Validate is going to refuse sizes below 1, and nobody has a
// second tier for the others.
std::int64_t StoredByDefault(const EvictionConfig& eviction) {
  constexpr std::int64_t kMost = std::int64_t{1} << 30;
  return std::clamp<std::int64_t>(eviction.max_cache_size, 1, kMost) * kStoredCaches;
}

// Defaults are whole blocks of their own size; another block size makes them whole blocks of that.
void RoundDefaults(EngineConfig* config) {
  const std::int64_t block = config->cache.block_size;
  if (block < 1 || block > 256) return;  // is going to be refused
  EvictionConfig& eviction = *config->eviction;
  const auto round = [block](bool is_default, std::int64_t* size) {
    if (is_default) *size = (*size + block - 1) / block * block;
  };
  round(config->yields.start_size, &eviction.start_size);
  round(config->yields.recent_size, &eviction.recent_size);
  round(config->yields.max_cache_size, &eviction.max_cache_size);
}

}  // namespace

std::string YieldedSizes(const EngineConfig& asked, const EngineConfig& settled) {
  if (!asked.eviction) return "";
  std::string sizes;
  const auto add = [&sizes](std::string_view flag, std::int64_t before, std::int64_t now) {
    if (now == before) return;
    sizes += fmt::format("{}{} {} and not {}", sizes.empty() ? "" : ", ", flag, now, before);
  };
  add("--max-cache-size", asked.eviction->max_cache_size, settled.eviction->max_cache_size);
  add("--start-size", asked.eviction->start_size, settled.eviction->start_size);
  add("--recent-size", asked.eviction->recent_size, settled.eviction->recent_size);
  add("--block-size", asked.cache.block_size, settled.cache.block_size);
  add("--chunk", asked.chunk_size, settled.chunk_size);
  return sizes;
}

EngineConfig SettledConfig(const CacheFlags& flags) {
  EngineConfig config = flags.config;
  RecallConfig& recall = config.recall;
  RoundDefaults(&config);
  if (flags.recall_store != "ram") recall.store_file = flags.recall_store;
  recall.blocks = flags.recall_blocks.value_or(kRecalledBlocks);
  recall.yields = !flags.recall_blocks;
  if (flags.recall_limit_tokens) {
    recall.limit_tokens = *flags.recall_limit_tokens;
  } else if (recall.limit_bytes == 0) {
    recall.limit_tokens = StoredByDefault(*config.eviction);
  }
  if (flags.no_eviction) {
    config.eviction.reset();
    config.recall = {};
  }
  Validate(config);
  return config;
}

std::vector<std::string> FlagsWithoutEffect(const FlagSet& flags, const CacheFlags& cache) {
  if (!cache.no_eviction) return {};
  std::vector<std::string> without = flags.GivenUnder(kEvictionHeading);
  const std::vector<std::string> recall = flags.GivenUnder(kRecallHeading);
  without.insert(without.end(), recall.begin(), recall.end());
  return without;
}

}  // namespace carousel
