// SPDX-License-Identifier: Apache-2.0
#include "cli/bench_definition.h"

#include <fmt/format.h>
#include <fmt/ranges.h>

#include <CLI/CLI.hpp>
#include <algorithm>
#include <optional>
#include <utility>

#include "cli/usage_error.h"
#include "config/members.h"
#include "config/setting_value.h"
#include "config/sizes.h"

namespace carousel {
namespace {

constexpr const char* kBenchFooter = R"(
Examples:
  carousel bench attention --contexts 512,4096 --kv-types f16,int8
  carousel bench model --contexts 512,2048 --max-cache-size off,672
  carousel bench rows --rows 1,4,16
  carousel bench serve --concurrency 1,4,16
  carousel bench sampler)";

constexpr const char* kAttentionFooter = R"(
Decode is one query over a context; prompt is a context's own tokens as queries, each of which sees itself
and what came before it, and GFLOP counts only what is seen. All times are per layer: a run goes through
the layers of a whole model, and for decode through as many copies of it as exceed the last-level cache
four times. GB is what the cache of a layer holds, scales included, read once; for decode its % is of what
a plain sum over the same memory reads, which takes its turn in every round.

The engines take turns in one process, on the same tokens and with as many threads; a warm-up round is
dropped, the median stands for the rest. The time of carousel includes the rotation of queries and the
attention mass of the last 8 queries, by which blocks are evicted; the new tokens are in the cache
beforehand. The time of openvino includes writing the new tokens to its cache; it gives no scores, and has
no shifts.

--phase eviction times the planning of a step that evicts one block of a cache as large as the context, with
query rotation, which rewrites no keys, and with key rotation.

The whole sweep takes minutes; give fewer contexts or kinds of cache for less.

Examples:
  carousel bench attention --json attention.jsonl
  carousel bench attention --phase decode --contexts 512,4096 --kv-types f16,int8 \
    --shifts none,2,every_block
  carousel bench attention --phase eviction --contexts 512,4096
  carousel bench attention --phase prompt --contexts 8192 --queries 256 --no-openvino)";

constexpr const char* kModelFooter = R"(
Reads a prompt and goes on from it, in each kind of cache in turn; a warm-up round is
dropped. The prompt's time ends with the first new token; the decode tokens come after it. Ways to sample
take turns as caches do; what they decode is held against greedy decoding in the same cache and round.

Examples:
  carousel bench model
  carousel bench model --contexts 512,2048,8192 --max-cache-size off,672 --kv-type-k int8 \
    --kv-type-v int8
  carousel bench model --contexts 256 --max-cache-size off --decode-tokens 256 \
    --sampling greedy,chat)";

constexpr const char* kRowsFooter = R"(
A step of so many rows is one token of each of as many answers, each in a sequence of its own that has read
--context random tokens. Numbers of rows take turns; every run begins at the same context, and a warm-up round is
dropped. A run's time is the median of its steps. It is held against one row in the same round: 4 rows in 1.5 times
the time of one give 4 / 1.5 times as many tokens in a second.

Examples:
  carousel bench rows
  carousel bench rows --rows 1,2,4,8 --context 1024 --max-cache-size 512 --json rows.jsonl
  carousel bench rows --rows 1,4,16 --batch-invariant on)";

constexpr const char* kServeFooter = R"(
Answers the same requests at each concurrency, which is how many are at work at once; more wait in line. Prompts
are random tokens, and answers have the length that was drawn, whatever the model says. Lengths and arrivals come
from --seed. A request's time to first token begins when it arrives; its time per token is of the tokens after the
first. "decode steps" are those in which nobody read a prompt: median time by number of answers in them, and the
best throughput that such steps allow, as a share of which the throughput of answers alone can be read.

--seconds N serves such requests for so long at the first concurrency, twice as many at once as are at work: half
of the prompts begin alike, half of the answers are guessed ahead, and --cancel-share of the requests are cancelled
at some moment. A row at each interval says what the process holds. The status is 1 where blocks are left at the end
that no checkpoint holds.

--load FILE gives the requests instead, one JSON object a line: {"prompt": [token ids], "answer": N, "at": seconds}.

Examples:
  carousel bench serve
  carousel bench serve --requests 64 --concurrency 16 --max-cache-size 512 --json serve.jsonl
  carousel bench serve --rate 4 --prompt-tokens 100,400 --answer-tokens 50,50
  carousel bench serve --seconds 1800 --cancel-share 0.2 --concurrency 8 --max-cache-size 512)";

constexpr const char* kSamplerFooter = R"(
Chooses tokens from random logits that are spread as a model's are, without a model: the pass over all words
that finds the largest and their sum is part of it. The ways take turns; a warm-up round is dropped. They are
  greedy       the likeliest word                     chat         as carousel chat does: its --help-all has
  penalty      greedy with chat's penalty                          the temperature, top-p, min-p and penalty
  temperature  1                                      top_p        0.95, at temperature 1
  top_k        40, at temperature 0.8                 min_p        0.05, at temperature 1
  logprobs     greedy, with the 20 likeliest words

Examples:
  carousel bench sampler
  carousel bench sampler --vocabulary 262144 --sampling greedy,chat --json -)";

void AddRoundsFlag(FlagSet* flags, std::int64_t* target) {
  flags->Integer({"--rounds", "N", fmt::format("How often each is timed (default {})", *target)},
                 {1, 1'000'000}, target);
}

void AddSamplingWaysFlag(FlagSet* flags, std::string_view default_ways,
                         std::vector<NamedSampling>* target) {
  std::vector<std::string_view> names;
  for (const NamedSampling& way : SamplingWays()) names.emplace_back(way.name);
  flags->List(
      {"--sampling", "W,...",
       fmt::format("Ways to choose a token: {} (default {}; carousel bench sampler --help-all "
                   "says what they are)",
                   fmt::join(names, ", "), default_ways)},
      [names, target](const std::vector<std::string>& words) {
        target->clear();
        for (const std::string& word : words) {
          RequireOneOf("", word, names);
          target->push_back(
              *std::find_if(SamplingWays().begin(), SamplingWays().end(),
                            [&](const NamedSampling& way) { return way.name == word; }));
        }
      });
}

void AddOutputFlags(FlagSet* flags, std::string* json) {
  flags->Heading("Output");
  AddJsonFlag(flags,
              "Write one JSON object per line there, when all is measured; -: standard output, "
              "without the table",
              json);
}

void CheckContext(const std::string& flag, std::int64_t value, std::int64_t least) {
  if (value < least)
    throw UsageError(fmt::format("{}: {} is too small; the least is {}", flag, value, least));
  const std::int64_t below = value / kMeasuredBlockSize * kMeasuredBlockSize;
  if (below == value) return;
  throw UsageError(fmt::format("{}: {} is not a multiple of the block size {}; use {} or {}", flag,
                               value, kMeasuredBlockSize, below, below + kMeasuredBlockSize));
}

class BenchAttentionCommand : public CommandDefinition {
 public:
  explicit BenchAttentionCommand(CLI::App* app) : CommandDefinition(app) {
    flags().Heading("Work");
    flags().Text({"--phase", "P", "decode, prompt, both, or eviction (default both)"}, &phase_);
    flags().Integers(
        {"--contexts", "N,...",
         fmt::format("Tokens attended to (default {})", fmt::join(target_.contexts, ","))},
        {INT64_MIN, 1 << 20}, &target_.contexts);
    flags().Integer(
        {"--queries", "N",
         "Queries of the prompt phase, the context's last tokens (default: all of them)"},
        {1, INT64_MAX}, &target_.queries);
    flags().List(
        {"--kv-types", "T,...",
         fmt::format("How our cache is held (default {})", fmt::join(EnumNames<KvType>(), ","))},
        [this](const std::vector<std::string>& words) { ReadKvTypes(words); });
    flags().List({"--shifts", "S,...",
                  "How many different rotations of the query the blocks ask for: none, a number, "
                  "every_block (default none,every_block)"},
                 [this](const std::vector<std::string>& words) { ReadShifts(words); });
    flags().Text({"--shape-of", "DIR",
                  "Take heads and layers from this model (default: those of SmolLM2-135M)"},
                 &target_.shape_of);
    flags().Switch({"--no-openvino", "", "Measure ours alone"}, &target_.no_openvino);
    flags().Heading("Measurement");
    AddRoundsFlag(&flags(), &target_.rounds);
    flags().Integer({"--seconds", "N",
                     fmt::format("Begin no further round of a context after so long (default {})",
                                 target_.seconds)},
                    {0, 1'000'000}, &target_.seconds);
    flags().Integer({"--threads", "N", "CPU threads; 0: all cores (default 0)"}, {0, 1024},
                    &target_.threads);
    AddOutputFlags(&flags(), &target_.json);
  }

  Invocation Settle(const Environment& environment) override {
    flags().Apply(environment);
    if (phase_ != "decode" && phase_ != "prompt" && phase_ != "both" && phase_ != "eviction")
      throw UsageError(fmt::format("{}: \"{}\" is not one of decode, prompt, both, eviction",
                                   flags().Label("--phase"), phase_));
    target_.decode = phase_ == "decode" || phase_ == "both";
    target_.prompt = phase_ == "prompt" || phase_ == "both";
    target_.eviction = phase_ == "eviction";
    const std::int64_t least = (target_.eviction ? kFewestBlocksToEvict : 1) * kMeasuredBlockSize;
    for (const std::int64_t context : target_.contexts)
      CheckContext(flags().Label("--contexts"), context, least);
    CheckAgainstShortest();
    RefuseEmpty(flags(), "--shape-of", target_.shape_of);
    RefuseEmpty(flags(), "--json", target_.json);
    FieldLabels labels = flags().Labels();
    labels["model"] = flags().Label("--shape-of");
    return {.command = target_, .labels = std::move(labels), .notes = {}};
  }

 private:
  void ReadKvTypes(const std::vector<std::string>& words) {
    target_.kv_types.clear();
    for (const std::string& word : words) {
      RequireOneOf("", word, EnumNames<KvType>());
      target_.kv_types.push_back(*ParseKvType(word));
    }
  }

  void ReadShifts(const std::vector<std::string>& words) {
    target_.shifts.clear();
    for (const std::string& word : words) {
      if (word == "none") {
        target_.shifts.push_back(kNoShifts);
      } else if (word == "every_block") {
        target_.shifts.push_back(kShiftInEveryBlock);
      } else if (word.find_first_not_of("-0123456789") == std::string::npos && !word.empty()) {
        target_.shifts.push_back(ReadInteger(word, {1, 1 << 20}));
      } else {
        throw UsageError(
            fmt::format("\"{}\" is neither none nor every_block nor a whole number", word));
      }
    }
  }

  void CheckAgainstShortest() {
    const std::int64_t context =
        *std::min_element(target_.contexts.begin(), target_.contexts.end());
    if (target_.prompt && target_.queries > context)
      throw UsageError(fmt::format("{}: {} is more than the context of {}; use at most that",
                                   flags().Label("--queries"), target_.queries, context));
    const std::int64_t most = *std::max_element(target_.shifts.begin(), target_.shifts.end());
    if (most > context / kMeasuredBlockSize)
      throw UsageError(fmt::format(
          "{}: {} is more than the {} blocks of the context {}; use at most that, or every_block",
          flags().Label("--shifts"), most, context / kMeasuredBlockSize, context));
  }

  std::string phase_ = "both";
  BenchAttentionFlags target_;
};

class BenchModelCommand : public CommandDefinition {
 public:
  explicit BenchModelCommand(CLI::App* app) : CommandDefinition(app) {
    flags().Heading("Work");
    flags().Integers(
        {"--contexts", "N,...",
         fmt::format("Tokens of the prompt (default {})", fmt::join(target_.contexts, ","))},
        {1, 1 << 20}, &target_.contexts);
    flags().Integer(
        {"--decode-tokens", "N",
         fmt::format("Tokens generated after the first (default {})", target_.decode_tokens)},
        {1, 1 << 20}, &target_.decode_tokens);
    flags().List(
        {"--max-cache-size", "N,...",
         "Tokens kept in each layer; a chunk that is read comes on top; off: keep every token "
         "(default off,672)"},
        [this](const std::vector<std::string>& words) { ReadCacheSizes(words); });
    AddSamplingWaysFlag(&flags(), "greedy", &target_.sampling);
    AddRoundsFlag(&flags(), &target_.rounds);
    flags().OptionalText({"--token-ids", "FILE",
                          "Prompts are the beginnings of this JSON array of token ids (default: "
                          "random tokens)"},
                         &target_.token_ids_file);
    AddModelFlags(&flags(), &target_.model);
    AddCacheFlags(&flags(), {.prompt_eviction = true, .one_size = false}, &cache_);
    AddOutputFlags(&flags(), &target_.json);
  }

  Invocation Settle(const Environment& environment) override {
    flags().Apply(environment);
    Invocation invocation;
    invocation.labels = ModelLabels(flags());
    for (const std::optional<std::int64_t>& size : cache_sizes_) {
      ConfigDraft cache = cache_;
      cache.keeps_all = !size.has_value();
      if (size) cache.config.eviction->max_cache_size = *size;
      cache.config.yields.max_cache_size = !flags().Given("--max-cache-size");
      target_.configs.push_back(CheckedConfig(cache, invocation.labels));
    }
    invocation.labels["prompt"] = flags().Label("--token-ids");
    RefuseEmpty(flags(), "--token-ids", target_.token_ids_file.value_or(""));
    RefuseEmpty(flags(), "--model", target_.model.directory);
    RefuseEmpty(flags(), "--json", target_.json);
    invocation.command = target_;
    return invocation;
  }

 private:
  void ReadCacheSizes(const std::vector<std::string>& words) {
    cache_sizes_.clear();
    for (const std::string& word : words) {
      if (word == "off") {
        cache_sizes_.push_back(std::nullopt);
      } else {
        cache_sizes_.push_back(ReadInteger(word, {INT64_MIN, INT64_MAX}));
      }
    }
  }

  std::vector<std::optional<std::int64_t>> cache_sizes_ = {std::nullopt,
                                                           EvictionConfig{}.max_cache_size};
  BenchModelFlags target_;
  ConfigDraft cache_;
};

class BenchRowsCommand : public CommandDefinition {
 public:
  explicit BenchRowsCommand(CLI::App* app) : CommandDefinition(app) {
    flags().Heading("Work");
    flags().Integers({"--rows", "N,...",
                      fmt::format("Rows of a step; one is always among them (default {})",
                                  fmt::join(target_.rows, ","))},
                     {1, kMostRequests}, &target_.rows);
    flags().Integer(
        {"--context", "N",
         fmt::format("Tokens that each sequence has read (default {})", target_.context)},
        {1, 1 << 20}, &target_.context);
    flags().Integer({"--steps", "N", fmt::format("Steps of a run (default {})", target_.steps)},
                    {1, 1 << 20}, &target_.steps);
    AddRoundsFlag(&flags(), &target_.rounds);
    AddModelFlags(&flags(), &target_.model);
    AddCacheFlags(&flags(), {.prompt_eviction = true}, &cache_);
    AddBatchInvariantFlag(&flags(), &cache_);
    AddOutputFlags(&flags(), &target_.json);
  }

  Invocation Settle(const Environment& environment) override {
    flags().Apply(environment);
    Invocation invocation;
    invocation.labels = ModelLabels(flags());
    target_.config = CheckedConfig(cache_, invocation.labels);
    RefuseEmpty(flags(), "--model", target_.model.directory);
    RefuseEmpty(flags(), "--json", target_.json);
    invocation.command = target_;
    return invocation;
  }

 private:
  BenchRowsFlags target_;
  ConfigDraft cache_;
};

class BenchServeCommand : public CommandDefinition {
 public:
  explicit BenchServeCommand(CLI::App* app) : CommandDefinition(app) {
    flags().Heading("Work");
    flags().Integer(
        {"--requests", "N", fmt::format("How many requests (default {})", target_.requests)},
        {1, 1'000'000}, &target_.requests);
    flags().Integers({"--concurrency", "N,...",
                      fmt::format("How many are answered side by side (default {})",
                                  fmt::join(target_.concurrency, ","))},
                     {1, kMostRequests}, &target_.concurrency);
    AddLengthsFlag("--prompt-tokens", "Tokens of a prompt", &target_.prompt);
    AddLengthsFlag("--answer-tokens", "Tokens of an answer", &target_.answer);
    flags().List(
        {"--rate", "X",
         "Requests that arrive in a second, at random; 0: all at the beginning (default "
         "0)"},
        [this](const std::vector<std::string>& words) { ReadNumber(words, 1e6, &target_.rate); });
    flags().Integer({"--seed", "N", "The same seed gives the same requests (default 0)"},
                    {0, INT64_MAX}, &target_.seed);
    flags().OptionalText({"--load", "FILE", "The requests are in this file"}, &target_.load_file);
    flags().Integer(
        {"--seconds", "N",
         "Let requests come for so long, and say at intervals what is held, in place of "
         "timing them; 0: not (default 0)"},
        {0, 10'000'000}, &target_.seconds);
    flags().List({"--cancel-share", "X",
                  "With --seconds: the part of the requests that is cancelled (default 0)"},
                 [this](const std::vector<std::string>& words) {
                   ReadNumber(words, 1.0, &target_.cancel_share);
                 });
    AddModelFlags(&flags(), &target_.model);
    AddCacheFlags(&flags(), {.prompt_eviction = true}, &cache_);
    AddBatchInvariantFlag(&flags(), &cache_);
    AddOutputFlags(&flags(), &target_.json);
  }

  Invocation Settle(const Environment& environment) override {
    flags().Apply(environment);
    Invocation invocation;
    invocation.labels = ModelLabels(flags());
    target_.config = CheckedConfig(cache_, invocation.labels);
    invocation.labels["load"] = flags().Label("--load");
    RefuseEmpty(flags(), "--load", target_.load_file.value_or(""));
    RefuseEmpty(flags(), "--model", target_.model.directory);
    RefuseEmpty(flags(), "--json", target_.json);
    invocation.command = target_;
    return invocation;
  }

 private:
  void AddLengthsFlag(const char* flag, const char* description, LengthRange* target) {
    flags().List(
        {flag, "N,N",
         fmt::format("{}, least and most (default {},{})", description, target->least,
                     target->most)},
        [flag, target](const std::vector<std::string>& words) {
          if (words.size() != 2)
            throw UsageError(fmt::format("{}: give the least and the most, as 16,128", flag));
          target->least = ReadInteger(words[0], {1, 1 << 20});
          target->most = ReadInteger(words[1], {target->least, 1 << 20});
        });
  }

  // From 0 to `most`.
  static void ReadNumber(const std::vector<std::string>& words, double most, double* target) {
    std::size_t used = 0;
    try {
      *target = std::stod(words.back(), &used);
    } catch (const std::exception&) {
      used = 0;
    }
    const bool fits = used == words.back().size() && *target >= 0.0 && *target <= most;
    if (!fits)
      throw UsageError(fmt::format("\"{}\" is not a number from 0 to {:.0f}", words.back(), most));
  }

  BenchServeFlags target_;
  ConfigDraft cache_;
};

class BenchSamplerCommand : public CommandDefinition {
 public:
  explicit BenchSamplerCommand(CLI::App* app) : CommandDefinition(app) {
    flags().Heading("Work");
    flags().Integers(
        {"--vocabulary", "N,...",
         fmt::format("Words to choose from (default {})", fmt::join(target_.vocabularies, ","))},
        {1, 1 << 24}, &target_.vocabularies);
    AddSamplingWaysFlag(&flags(), "all", &target_.sampling);
    flags().Integer({"--draws", "N", fmt::format("Tokens of a run (default {})", target_.draws)},
                    {1, 1'000'000}, &target_.draws);
    AddRoundsFlag(&flags(), &target_.rounds);
    AddOutputFlags(&flags(), &target_.json);
  }

  Invocation Settle(const Environment& environment) override {
    flags().Apply(environment);
    RefuseEmpty(flags(), "--json", target_.json);
    return {.command = target_, .labels = flags().Labels(), .notes = {}};
  }

 private:
  BenchSamplerFlags target_;
};

}  // namespace

void DefineBench(CLI::App* program, std::vector<std::unique_ptr<CommandDefinition>>* commands) {
  CLI::App* bench = AddCommand(
      program, "bench",
      "Measure how fast attention, models, steps of many answers, many requests and sampling are",
      kBenchFooter);
  bench->require_subcommand(0, 1);
  commands->push_back(Define<BenchAttentionCommand>(
      bench, "attention", "Time attention alone, beside OpenVINO's and the machine's own limits",
      kAttentionFooter));
  commands->push_back(Define<BenchModelCommand>(
      bench, "model", "Time prompt and decode of a model in different caches", kModelFooter));
  commands->push_back(Define<BenchRowsCommand>(
      bench, "rows", "Time a step of one token by the number of answers in it", kRowsFooter));
  commands->push_back(Define<BenchServeCommand>(
      bench, "serve", "Answer many requests side by side, and time each", kServeFooter));
  commands->push_back(Define<BenchSamplerCommand>(
      bench, "sampler", "Time the choice of a token in different ways", kSamplerFooter));
}

}  // namespace carousel
