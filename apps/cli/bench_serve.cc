// SPDX-License-Identifier: Apache-2.0
// carousel bench serve: many requests side by side, what each waits for, and what all get together.
#include <fmt/format.h>

#include <algorithm>
#include <cmath>
#include <map>
#include <memory>
#include <nlohmann/json.hpp>
#include <optional>
#include <random>
#include <string>
#include <thread>
#include <utility>
#include <vector>

#include "answers/prompt_file.h"
#include "base/clock.h"
#include "base/lines.h"
#include "carousel/engine.h"
#include "carousel/error.h"
#include "cli/bench_soak.h"
#include "cli/commands.h"
#include "cli/numbers.h"
#include "cli/progress.h"
#include "cli/whole_file.h"
#include "measure/borrowed_model.h"
#include "measure/process_memory.h"
#include "measure/statistics.h"

namespace carousel {
namespace {

using nlohmann::json;
using nlohmann::ordered_json;

struct LoadRequest {
  std::vector<TokenId> prompt;
  std::int64_t answer = 0;  // tokens
  double at = 0.0;          // seconds after the beginning
};
using RequestLoad = std::vector<LoadRequest>;  // by `at`

[[noreturn]] void FailLoad(std::int64_t line, std::string_view problem) {
  throw Error(ErrorCode::kInvalidArgument, "load", fmt::format("line {}: {}", line, problem));
}

LoadRequest ReadLoadRequest(std::string_view text, std::int64_t line) {
  const json object = json::parse(text, nullptr, /*allow_exceptions=*/false);
  if (!object.is_object()) FailLoad(line, "is not a JSON object");
  LoadRequest request;
  const auto prompt = object.find("prompt");
  if (prompt == object.end() || !prompt->is_array())
    FailLoad(line, "\"prompt\" must be an array of token ids");
  request.prompt = TokenIdsOf(*prompt, fmt::format("line {}: \"prompt\"", line));
  const auto answer = object.find("answer");
  if (answer == object.end() || !answer->is_number_integer() || *answer < 1 || *answer > 1 << 20)
    FailLoad(line, "\"answer\" must be a whole number from 1 to 1048576");
  request.answer = answer->get<std::int64_t>();
  if (const auto at = object.find("at"); at != object.end()) {
    if (!at->is_number() || *at < 0.0 || *at > 1e9) FailLoad(line, "\"at\" must be seconds");
    request.at = at->get<double>();
  }
  return request;
}

RequestLoad ReadLoad(const std::string& path) {
  const std::string text = ReadPromptFile(path);
  RequestLoad load;
  std::int64_t number = 0;
  for (std::string_view rest = text; !rest.empty();) {
    const std::string_view line = TakeLine(&rest);
    ++number;
    if (!IsBlankLine(line)) load.push_back(ReadLoadRequest(line, number));
  }
  if (load.empty())
    throw Error(ErrorCode::kInvalidArgument, "load", "holds no request; give one a line");
  std::stable_sort(load.begin(), load.end(),
                   [](const auto& left, const auto& right) { return left.at < right.at; });
  return load;
}

RequestLoad DrawLoad(const BenchServeFlags& flags, std::int64_t vocabulary) {
  std::mt19937_64 generator(static_cast<std::uint64_t>(flags.seed));
  std::uniform_real_distribution<double> share(0.0, 1.0);
  RequestLoad load(static_cast<std::size_t>(flags.requests));
  double now = 0.0;
  for (LoadRequest& request : load) {
    const double least = std::log(static_cast<double>(flags.prompt.least));
    const double most = std::log(static_cast<double>(flags.prompt.most));
    const auto tokens =
        static_cast<std::size_t>(std::llround(std::exp(least + (most - least) * share(generator))));
    for (std::size_t i = 0; i < tokens; ++i) {
      request.prompt.push_back(
          static_cast<TokenId>(generator() % static_cast<std::uint64_t>(vocabulary)));
    }
    const auto lengths = static_cast<std::uint64_t>(flags.answer.most - flags.answer.least + 1);
    request.answer = flags.answer.least + static_cast<std::int64_t>(generator() % lengths);
    request.at = now;
    if (flags.rate > 0.0) now -= std::log(1.0 - share(generator)) / flags.rate;
  }
  return load;
}

// When things happened to a request, in seconds after the beginning.
struct Times {
  double arrived = 0.0;
  double first_token = 0.0;
  double last_token = 0.0;
};

struct ServeResult {
  std::vector<Times> times;  // by request
  std::vector<std::int64_t> answered;
  double seconds = 0.0;
  std::int64_t peak_cache_bytes = 0;
  std::map<std::int64_t, std::vector<double>> decode_seconds;  // by rows, of steps of answers alone
  EngineMetrics metrics;
};

class Serving {
 public:
  Serving(Engine* engine, const RequestLoad& load, Progress* progress)
      : engine_(*engine), load_(load), progress_(*progress) {
    result_.times.resize(load.size());
    result_.answered.resize(load.size());
  }

  ServeResult Run() {
    while (next_ < load_.size() || !open_.empty()) {
      LetIn();
      if (open_.empty()) {
        std::this_thread::sleep_for(
            std::chrono::duration<double>(load_[next_].at - SecondsSince(begin_)));
        continue;
      }
      Step();
      if (progress_.IsDue())
        progress_.Show(
            fmt::format("{} of {} requests", Grouped(done_), Grouped(std::ssize(load_))));
    }
    result_.seconds = SecondsSince(begin_);
    result_.metrics = engine_.metrics();
    return std::move(result_);
  }

 private:
  // Whose time has come.
  void LetIn() {
    for (; next_ < load_.size() && load_[next_].at <= SecondsSince(begin_); ++next_) {
      const SequenceId sequence = engine_.Open();
      engine_.Submit(sequence, {.prompt = load_[next_].prompt,
                                .max_new_tokens = load_[next_].answer,
                                .ignore_end_tokens = true});
      open_[sequence] = next_;
      result_.times[next_].arrived = load_[next_].at;
    }
  }

  void Step() {
    const auto begin = Clock::now();
    const std::vector<StepOutput> outputs = engine_.Step();
    const double seconds = SecondsSince(begin);
    const double now = SecondsSince(begin_);
    bool is_decode = true;
    for (const StepOutput& output : outputs) {
      if (output.failure) std::rethrow_exception(output.failure);
      const std::size_t request = open_.at(output.sequence);
      Times& times = result_.times[request];
      is_decode = is_decode && times.first_token > 0.0;
      if (output.result.sampled) {
        if (times.first_token == 0.0) times.first_token = now;
        times.last_token = now;
        ++result_.answered[request];
      }
      if (output.result.finish_reason == FinishReason::kNone) continue;
      engine_.Close(output.sequence);
      open_.erase(output.sequence);
      ++done_;
    }
    if (is_decode) result_.decode_seconds[std::ssize(outputs)].push_back(seconds);
    result_.peak_cache_bytes = std::max(result_.peak_cache_bytes, engine_.metrics().cache_bytes);
  }

  Engine& engine_;
  const RequestLoad& load_;
  Progress& progress_;
  Clock::time_point begin_ = Clock::now();
  std::size_t next_ = 0;
  std::int64_t done_ = 0;
  std::map<SequenceId, std::size_t> open_;
  ServeResult result_;
};

// A short request, so that nothing of the load is the first of its kind.
RequestLoad WarmUpOf(const RequestLoad& load) {
  constexpr std::size_t kTokens = 64;
  LoadRequest first = load.front();
  first.prompt.resize(std::min(first.prompt.size(), kTokens));
  first.answer = 4;
  first.at = 0.0;
  return {std::move(first)};
}

// The value that so many of all are not above.
double Percentile(std::vector<double> values, double share) {
  if (values.empty()) return 0.0;
  std::sort(values.begin(), values.end());
  const auto rank = static_cast<std::size_t>(std::ceil(share * static_cast<double>(values.size())));
  return values[std::max<std::size_t>(rank, 1) - 1];
}

ordered_json PercentilesOf(const std::vector<double>& seconds) {
  return {{"p50", 1e3 * Percentile(seconds, 0.5)},
          {"p95", 1e3 * Percentile(seconds, 0.95)},
          {"p99", 1e3 * Percentile(seconds, 0.99)}};
}

template <typename Histogram>
ordered_json HistogramJson(const Histogram& histogram) {
  return {
      {"bounds", histogram.kBounds},
      {"counts", histogram.counts},
      {"mean", histogram.sum / static_cast<double>(std::max<std::int64_t>(1, histogram.count()))}};
}

ordered_json Line(const ServeResult& result, const RequestLoad& load, std::int64_t concurrency,
                  const Engine& engine) {
  std::int64_t prompt_tokens = 0;
  std::int64_t new_tokens = 0;
  std::vector<double> first;
  std::vector<double> each;
  for (std::size_t i = 0; i < load.size(); ++i) {
    const Times& times = result.times[i];
    prompt_tokens += std::ssize(load[i].prompt);
    new_tokens += result.answered[i];
    first.push_back(times.first_token - times.arrived);
    if (result.answered[i] > 1)
      each.push_back((times.last_token - times.first_token) /
                     static_cast<double>(result.answered[i] - 1));
  }
  ordered_json steps = ordered_json::array();
  for (const auto& [rows, seconds] : result.decode_seconds) {
    steps.push_back(
        {{"rows", rows}, {"steps", seconds.size()}, {"median_ms", 1e3 * SpreadOf(seconds).median}});
  }
  const EngineConfig& config = engine.config();
  ordered_json line{
      {"type", "serve"},
      {"engine", "carousel"},
      {"model", engine.model().spec().name},
      {"concurrency", concurrency},
      {"requests", load.size()},
      {"max_cache_size", nullptr},
      {"batch_invariant", config.scheduler.batch_invariant},
      {"prompt_tokens", prompt_tokens},
      {"new_tokens", new_tokens},
      {"seconds", result.seconds},
      {"new_tokens_per_s", static_cast<double>(new_tokens) / result.seconds},
      {"total_tokens_per_s", static_cast<double>(prompt_tokens + new_tokens) / result.seconds},
      {"ttft_ms", PercentilesOf(first)},
      {"tpot_ms", PercentilesOf(each)},
      {"steps", result.metrics.steps},
      {"rows", result.metrics.rows},
      {"preemptions", result.metrics.preemptions},
      {"evicted_tokens", result.metrics.evicted_tokens},
      {"reused_tokens", result.metrics.reused_tokens},
      {"evicted_block_age_tokens", HistogramJson(result.metrics.evicted_blocks.age)},
      {"evicted_block_idle_tokens", HistogramJson(result.metrics.evicted_blocks.idle)},
      {"peak_cache_bytes", result.peak_cache_bytes},
      {"peak_rss_bytes", ReadProcessMemory().peak_rss_bytes},
      {"decode_steps", std::move(steps)}};
  if (config.eviction) line["max_cache_size"] = config.eviction->max_cache_size;
  return line;
}

std::string Row(const ordered_json& line) {
  const auto times = [&](const char* name) {
    return fmt::format("{:.0f} {:.0f} {:.0f}", line[name]["p50"].get<double>(),
                       line[name]["p95"].get<double>(), line[name]["p99"].get<double>());
  };
  return fmt::format(
      "{:>11} {:>9.1f} {:>9.1f} {:>20} {:>20} {:>9}\n", line["concurrency"].get<std::int64_t>(),
      line["new_tokens_per_s"].get<double>(), line["total_tokens_per_s"].get<double>(),
      times("ttft_ms"), times("tpot_ms"), Megabytes(line["peak_cache_bytes"].get<std::int64_t>()));
}

}  // namespace

int RunBenchServe(const BenchServeFlags& flags, Backend* backend, Console* console) {
  if (flags.seconds > 0) return RunSoak(flags, backend, console);
  std::optional<WholeFile> file;
  if (!flags.json.empty()) file.emplace(flags.json, console->out.fd());
  const bool table = flags.json != "-";
  RequestLoad load;
  if (flags.load_file) load = ReadLoad(*flags.load_file);
  const std::unique_ptr<Model> model = backend->LoadModel(flags.model);
  if (load.empty()) load = DrawLoad(flags, model->spec().vocabulary_size);
  if (table)
    console->out.Write(
        fmt::format("{}; {} requests; milliseconds, p50 p95 p99\n"
                    "{:>11} {:>9} {:>9} {:>20} {:>20} {:>9}\n",
                    model->spec().name, load.size(), "concurrency", "new tok/s", "all tok/s",
                    "to first token", "per token", "cache"));
  Progress progress(&console->err);
  std::string lines;
  for (const std::int64_t concurrency : flags.concurrency) {
    EngineConfig config = flags.config;
    config.scheduler.max_running = concurrency;
    config.scheduler.max_waiting = static_cast<std::int64_t>(load.size());
    const auto engine = Engine::Create(std::make_unique<BorrowedModel>(model.get()), config);
    const RequestLoad warm_up = WarmUpOf(load);
    Serving(engine.get(), warm_up, &progress).Run();
    const EngineMetrics before = engine->metrics();
    ServeResult result = Serving(engine.get(), load, &progress).Run();
    result.metrics.steps -= before.steps;
    result.metrics.rows -= before.rows;
    result.metrics.evicted_blocks.age.Subtract(before.evicted_blocks.age);
    result.metrics.evicted_blocks.idle.Subtract(before.evicted_blocks.idle);
    progress.Hide();
    const ordered_json line = Line(result, load, concurrency, *engine);
    if (table) console->out.Write(Row(line));
    lines += line.dump() + "\n";
  }
  if (file) file->Write(lines);
  return 0;
}

}  // namespace carousel
