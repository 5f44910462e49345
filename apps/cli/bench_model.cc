// SPDX-License-Identifier: Apache-2.0
// carousel bench model: prompt and decode of a whole model in caches of different kinds, and with
// different ways to sample.
#include <fmt/format.h>

#include <algorithm>
#include <memory>
#include <nlohmann/json.hpp>
#include <optional>
#include <random>
#include <span>
#include <string>
#include <utility>
#include <vector>

#include "answers/prompt_file.h"
#include "base/clock.h"
#include "carousel/error.h"
#include "carousel/single_sequence_engine.h"
#include "cli/commands.h"
#include "cli/numbers.h"
#include "cli/progress.h"
#include "cli/whole_file.h"
#include "measure/borrowed_model.h"
#include "measure/contender.h"
#include "measure/process_memory.h"

namespace carousel {
namespace {

using nlohmann::ordered_json;

// The longest prompt; the others are its beginnings.
std::vector<TokenId> ReadPrompt(const BenchModelFlags& flags) {
  std::vector<TokenId> tokens = ReadTokenIds(*flags.token_ids_file);
  const std::int64_t wanted = *std::max_element(flags.contexts.begin(), flags.contexts.end());
  if (std::ssize(tokens) < wanted)
    throw Error(ErrorCode::kInvalidArgument, "prompt",
                fmt::format("{} has {} tokens, but --contexts asks for {}; use at most {}",
                            *flags.token_ids_file, tokens.size(), wanted, tokens.size()));
  return tokens;
}

std::vector<TokenId> RandomPrompt(const BenchModelFlags& flags, std::int64_t vocabulary_size) {
  const std::int64_t count = *std::max_element(flags.contexts.begin(), flags.contexts.end());
  std::mt19937 generator(1);
  std::uniform_int_distribution<TokenId> any(0, static_cast<TokenId>(vocabulary_size - 1));
  std::vector<TokenId> tokens(static_cast<std::size_t>(count));
  for (TokenId& token : tokens) token = any(generator);
  return tokens;
}

// A prompt and what is generated after it, from an empty cache.
class Generation : public Contender {
 public:
  Generation(SingleSequenceEngine* engine, const NamedSampling& sampling,
             const std::vector<TokenId>& prompt, std::int64_t decode_tokens)
      : engine_(engine), sampling_(sampling), prompt_(prompt), decode_tokens_(decode_tokens) {}

  void Run() override {
    engine_->Reset();
    engine_->Submit({.prompt = prompt_,
                     .max_new_tokens = decode_tokens_ + 1,
                     .ignore_end_tokens = true,
                     .sampling = sampling_.params});
    const auto begin = Clock::now();
    while (!engine_->Step().sampled) continue;
    const auto first_token = Clock::now();
    while (engine_->HasWork()) engine_->Step();
    const auto end = Clock::now();
    prompt_rates_.push_back(static_cast<double>(prompt_.size()) /
                            SecondsBetween(begin, first_token));
    decode_rates_.push_back(static_cast<double>(decode_tokens_) / SecondsBetween(first_token, end));
  }

  const SingleSequenceEngine& engine() const { return *engine_; }
  const NamedSampling& sampling() const { return sampling_; }
  // Tokens per second, without the warm-up.
  Spread PromptRate() const { return SpreadOf({prompt_rates_.begin() + 1, prompt_rates_.end()}); }
  Spread DecodeRate() const { return SpreadOf({decode_rates_.begin() + 1, decode_rates_.end()}); }
  // Of this over that, round by round.
  Spread DecodeRateOver(const Generation& other) const {
    std::vector<double> ratios;
    for (std::size_t round = 1; round < decode_rates_.size(); ++round)
      ratios.push_back(decode_rates_[round] / other.decode_rates_[round]);
    return SpreadOf(std::move(ratios));
  }

 private:
  SingleSequenceEngine* engine_;
  NamedSampling sampling_;
  const std::vector<TokenId>& prompt_;
  std::int64_t decode_tokens_;
  std::vector<double> prompt_rates_;
  std::vector<double> decode_rates_;
};

void AddSpread(const std::string& name, const Spread& spread, ordered_json* line) {
  (*line)[name] = spread.median;
  (*line)[name + "_least"] = spread.least;
  (*line)[name + "_most"] = spread.most;
}

// The one that decodes greedily in the same cache; null where none does, and for itself.
const Generation* GreedyBeside(const std::vector<Generation>& generations,
                               const Generation& generation) {
  for (const Generation& other : generations) {
    if (&other.engine() == &generation.engine() && &other != &generation &&
        other.sampling().name == SamplingWays().front().name)
      return &other;
  }
  return nullptr;
}

ordered_json Line(const Generation& generation, const Generation* greedy, std::int64_t context,
                  const BenchModelFlags& flags) {
  const SingleSequenceEngine& engine = generation.engine();
  const EngineConfig& config = engine.config();
  const SequenceMetrics metrics = engine.metrics();
  ordered_json line = {{"type", "model"},
                       {"engine", "carousel"},
                       {"model", engine.model().spec().name},
                       {"context", context},
                       {"decode_tokens", flags.decode_tokens},
                       {"sampling", generation.sampling().name},
                       {"max_cache_size", nullptr},
                       {"kv_type_k", Name(config.cache.key_type)},
                       {"kv_type_v", Name(config.cache.value_type)},
                       {"chunk", config.chunk_size},
                       {"threads", flags.model.threads},
                       {"rotation", Name(metrics.rotation)},
                       {"resident_tokens", metrics.resident_tokens},
                       {"cache_bytes", metrics.cache_bytes},
                       {"peak_rss_bytes", ReadProcessMemory().peak_rss_bytes}};
  if (config.eviction) line["max_cache_size"] = config.eviction->max_cache_size;
  AddSpread("prompt_tokens_per_s", generation.PromptRate(), &line);
  AddSpread("decode_tokens_per_s", generation.DecodeRate(), &line);
  if (greedy != nullptr) AddSpread("decode_over_greedy", generation.DecodeRateOver(*greedy), &line);
  return line;
}

std::string OverGreedy(const Spread& ratio) {
  return fmt::format(", {:.3f} of greedy ({:.3f} to {:.3f})", ratio.median, ratio.least,
                     ratio.most);
}

std::string Row(const Generation& generation, const Generation* greedy, std::int64_t context) {
  const EngineConfig& config = generation.engine().config();
  const auto rate = [](const Spread& spread) {
    return fmt::format("{:.1f} ({:.1f} to {:.1f})", spread.median, spread.least, spread.most);
  };
  return fmt::format(
      "{:>8} {:>9} {:>11} {:>9} {:>26} {:>26} {}{}\n", Grouped(context),
      config.eviction ? Grouped(config.eviction->max_cache_size) : "off",
      fmt::format("{}/{}", Name(config.cache.key_type), Name(config.cache.value_type)),
      Grouped(generation.engine().metrics().resident_tokens), rate(generation.PromptRate()),
      rate(generation.DecodeRate()), generation.sampling().name,
      greedy == nullptr ? "" : OverGreedy(generation.DecodeRateOver(*greedy)));
}

}  // namespace

int RunBenchModel(const BenchModelFlags& flags, Backend* backend, Console* console) {
  std::optional<WholeFile> file;
  if (!flags.json.empty()) file.emplace(flags.json, console->out.fd());
  const bool table = flags.json != "-";
  std::vector<TokenId> tokens;
  if (flags.token_ids_file) tokens = ReadPrompt(flags);
  const std::unique_ptr<Model> model = backend->LoadModel(flags.model);
  if (tokens.empty()) tokens = RandomPrompt(flags, model->spec().vocabulary_size);
  std::vector<std::unique_ptr<SingleSequenceEngine>> engines;
  for (const EngineConfig& config : flags.configs)
    engines.push_back(backend->CreateEngine(std::make_unique<BorrowedModel>(model.get()), config));
  if (table)
    console->out.Write(fmt::format(
        "{}; tokens per second, median (least to most)\n"
        "{:>8} {:>9} {:>11} {:>9} {:>26} {:>26} {}\n",
        model->spec().name, "context", "cache", "K/V", "resident", "prompt", "decode", "sampling"));
  Progress progress(&console->err);
  std::string lines;
  for (const std::int64_t context : flags.contexts) {
    const std::vector<TokenId> prompt(tokens.begin(), tokens.begin() + context);
    std::vector<Generation> generations;
    for (const auto& engine : engines) {
      for (const NamedSampling& sampling : flags.sampling)
        generations.emplace_back(engine.get(), sampling, prompt, flags.decode_tokens);
    }
    std::vector<Contender*> contenders;
    for (Generation& generation : generations) contenders.push_back(&generation);
    TakeTurns(contenders, {.count = flags.rounds, .enough_seconds = 1e9}, [&](std::int64_t round) {
      progress.Show(
          fmt::format("{} tokens: round {} of {}", Grouped(context), round, flags.rounds));
    });
    progress.Hide();
    for (const Generation& generation : generations) {
      const Generation* greedy = GreedyBeside(generations, generation);
      if (table) console->out.Write(Row(generation, greedy, context));
      lines += Line(generation, greedy, context, flags).dump() + "\n";
    }
  }
  if (table)
    console->out.Write(
        fmt::format("memory: at most {}\n", Megabytes(ReadProcessMemory().peak_rss_bytes)));
  if (file) file->Write(lines);
  return 0;
}

}  // namespace carousel
