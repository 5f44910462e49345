// SPDX-License-Identifier: Apache-2.0
#include "cli/bench_soak.h"

#include <fmt/format.h>

#include <algorithm>
#include <cmath>
#include <map>
#include <memory>
#include <nlohmann/json.hpp>
#include <optional>
#include <random>
#include <string>
#include <utility>
#include <vector>

#include "base/clock.h"
#include "carousel/engine.h"
#include "carousel/error.h"
#include "cli/numbers.h"
#include "cli/whole_file.h"
#include "engine/engine_inside.h"
#include "measure/process_memory.h"

namespace carousel {
namespace {

using nlohmann::ordered_json;

// Where none are asked for.
constexpr std::int64_t kCheckpointBytes = std::int64_t{64} << 20;
constexpr std::int64_t kDraftTokens = 8;
constexpr std::size_t kBeginnings = 4;

class Soak {
 public:
  Soak(Engine* engine, const BenchServeFlags& flags)
      : engine_(*engine),
        flags_(flags),
        concurrency_(flags.concurrency.front()),
        random_(static_cast<std::uint64_t>(flags.seed)) {
    for (std::size_t i = 0; i < kBeginnings; ++i)
      beginnings_.push_back(RandomTokens(std::max<std::int64_t>(1, flags.prompt.most / 2)));
  }

  // For so many seconds from the beginning on; requests that are at work then go on.
  void ServeUntil(double seconds) {
    while (SecondsSince(begin_) < seconds) {
      if (std::ssize(open_) < 2 * concurrency_ && (open_.empty() || Share() < 0.5)) Ask();
      Step();
    }
  }

  void Finish() {
    while (engine_.HasWork()) Step();
    InsideOf(engine_).CheckIntegrity();
  }

  ordered_json Line() const {
    const EngineMetrics metrics = engine_.metrics();
    return {{"type", "soak"},
            {"seconds", SecondsSince(begin_)},
            {"requests", requests_},
            {"cancelled", cancelled_},
            {"failed", failed_},
            {"new_tokens", new_tokens_},
            {"open", open_.size()},
            {"rss_bytes", ReadProcessMemory().rss_bytes},
            {"cache_bytes", metrics.cache_bytes},
            {"reserved_bytes", metrics.reserved_bytes},
            {"checkpoint_bytes", metrics.checkpoint_bytes},
            {"moved_out_bytes", metrics.moved_out_bytes},
            {"preemptions", metrics.preemptions},
            {"evicted_tokens", metrics.evicted_tokens},
            {"recalled_blocks", metrics.recalled_blocks},
            {"promoted_blocks", metrics.promoted_blocks},
            {"reused_tokens", metrics.reused_tokens},
            {"accepted_tokens", metrics.accepted_tokens}};
  }

 private:
  struct Open {
    RequestId request;
    std::int64_t cancel_after = -1;  // outputs; below 0: never
  };

  double Share() { return std::uniform_real_distribution<double>(0.0, 1.0)(random_); }
  std::int64_t Number(std::int64_t least, std::int64_t most) {
    return std::uniform_int_distribution<std::int64_t>(least, most)(random_);
  }
  std::vector<TokenId> RandomTokens(std::int64_t count) {
    std::vector<TokenId> tokens(static_cast<std::size_t>(count));
    for (TokenId& token : tokens)
      token = static_cast<TokenId>(Number(0, engine_.model().spec().vocabulary_size - 1));
    return tokens;
  }

  Request Draw() {
    const double least = std::log(static_cast<double>(flags_.prompt.least));
    const double most = std::log(static_cast<double>(flags_.prompt.most));
    Request request{
        .prompt = RandomTokens(std::llround(std::exp(least + (most - least) * Share()))),
        .max_new_tokens = Number(flags_.answer.least, flags_.answer.most),
        .ignore_end_tokens = true};
    if (Share() < 0.5) {
      const auto& beginning =
          beginnings_[static_cast<std::size_t>(Number(0, std::ssize(beginnings_) - 1))];
      const std::size_t alike = std::min(beginning.size(), request.prompt.size());
      std::copy_n(beginning.begin(), alike, request.prompt.begin());
    }
    if (Share() < 0.5) request.sampling.max_draft_tokens = kDraftTokens;
    return request;
  }

  void Ask() {
    const SequenceId sequence = engine_.Open();
    Open open{.request = engine_.Submit(sequence, Draw())};
    if (Share() < flags_.cancel_share) open.cancel_after = Number(0, flags_.answer.most);
    open_[sequence] = open;
    ++requests_;
  }

  void Step() {
    for (auto& [sequence, open] : open_)
      if (open.cancel_after == 0) engine_.Cancel(open.request);
    for (const StepOutput& output : engine_.Step()) {
      Open& open = open_.at(output.sequence);
      if (output.failure) {
        ++failed_;
        engine_.Cancel(open.request);
        continue;
      }
      if (open.cancel_after > 0) --open.cancel_after;
      if (output.result.sampled) ++new_tokens_;
      if (output.result.finish_reason == FinishReason::kNone) continue;
      if (output.result.finish_reason == FinishReason::kCancelled) ++cancelled_;
      engine_.Close(output.sequence);
      open_.erase(output.sequence);
    }
  }

  Engine& engine_;
  const BenchServeFlags& flags_;
  std::int64_t concurrency_;
  std::mt19937_64 random_;
  std::vector<std::vector<TokenId>> beginnings_;
  Clock::time_point begin_ = Clock::now();
  std::map<SequenceId, Open> open_;
  std::int64_t requests_ = 0;
  std::int64_t cancelled_ = 0;
  std::int64_t failed_ = 0;
  std::int64_t new_tokens_ = 0;
};

std::string Row(const ordered_json& line) {
  const auto number = [&](const char* name) { return Grouped(line[name].get<std::int64_t>()); };
  const auto bytes = [&](const char* name) { return Megabytes(line[name].get<std::int64_t>()); };
  return fmt::format("{:>7.0f} {:>9} {:>9} {:>6} {:>10} {:>10} {:>10} {:>11} {:>11}\n",
                     line["seconds"].get<double>(), number("requests"), number("cancelled"),
                     number("failed"), bytes("rss_bytes"), bytes("cache_bytes"),
                     bytes("reserved_bytes"), bytes("checkpoint_bytes"), number("preemptions"));
}

}  // namespace

int RunSoak(const BenchServeFlags& flags, Backend* backend, Console* console) {
  std::optional<WholeFile> file;
  if (!flags.json.empty()) file.emplace(flags.json, console->out.fd());
  const bool table = flags.json != "-";
  EngineConfig config = flags.config;
  config.scheduler = {.max_running = flags.concurrency.front(),
                      .max_waiting = 2 * flags.concurrency.front()};
  if (config.checkpoint_bytes == 0) config.checkpoint_bytes = kCheckpointBytes;
  const auto engine = Engine::Create(backend->LoadModel(flags.model), config);
  if (table) {
    console->out.Write(fmt::format("{:>7} {:>9} {:>9} {:>6} {:>10} {:>10} {:>10} {:>11} {:>11}\n",
                                   "seconds", "requests", "cancelled", "failed", "resident",
                                   "in blocks", "reserved", "checkpoints", "preemptions"));
  }
  Soak soak(engine.get(), flags);
  std::string lines;
  const auto tell = [&] {
    const ordered_json line = soak.Line();
    if (table) console->out.Write(Row(line));
    lines += line.dump() + "\n";
  };
  const double interval = std::clamp(static_cast<double>(flags.seconds) / 60, 1.0, 60.0);
  for (double end = interval; end < static_cast<double>(flags.seconds) + interval;
       end += interval) {
    soak.ServeUntil(std::min(end, static_cast<double>(flags.seconds)));
    tell();
  }
  soak.Finish();
  tell();
  if (file) file->Write(lines);
  const EngineMetrics metrics = engine->metrics();
  return metrics.sequences == 0 && metrics.cache_bytes <= metrics.checkpoint_bytes ? 0 : 1;
}

}  // namespace carousel
