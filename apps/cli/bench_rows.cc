// SPDX-License-Identifier: Apache-2.0
// carousel bench rows: what a step costs by the number of answers that it moves.
#include <fmt/format.h>

#include <algorithm>
#include <cstdint>
#include <memory>
#include <nlohmann/json.hpp>
#include <optional>
#include <random>
#include <span>
#include <string>
#include <utility>
#include <vector>

#include "base/check.h"
#include "base/clock.h"
#include "carousel/engine.h"
#include "carousel/error.h"
#include "cli/commands.h"
#include "cli/numbers.h"
#include "cli/progress.h"
#include "cli/whole_file.h"
#include "measure/contender.h"
#include "measure/process_memory.h"

namespace carousel {
namespace {

using nlohmann::ordered_json;

// A sequence, and itself when it had read its context.
struct Reader {
  SequenceId sequence;
  CheckpointId after_context;
};

void StepAll(Engine* engine) {
  for (const StepOutput& output : engine->Step()) {
    if (output.failure) std::rethrow_exception(output.failure);
  }
}

// Each reads random tokens of its own.
std::vector<Reader> ReadContexts(Engine* engine, std::int64_t count, std::int64_t context) {
  std::mt19937 generator(1);
  const std::int64_t vocabulary = engine->model().spec().vocabulary_size;
  std::uniform_int_distribution<TokenId> any(0, static_cast<TokenId>(vocabulary - 1));
  std::vector<Reader> readers;
  for (std::int64_t i = 0; i < count; ++i) {
    std::vector<TokenId> tokens(static_cast<std::size_t>(context));
    for (TokenId& token : tokens) token = any(generator);
    const SequenceId sequence = engine->Open();
    engine->Submit(sequence, {.prompt = std::move(tokens), .max_new_tokens = 0});
    while (engine->HasWork()) StepAll(engine);
    readers.push_back({.sequence = sequence, .after_context = engine->Mark(sequence)});
  }
  return readers;
}

// Of a step, in milliseconds.
struct StepTimes {
  std::vector<double> whole;  // by round, the warm-up first: the median of a run's steps
  std::vector<double> forward;
  std::vector<double> attention;
};

// Steps of one token of each of some sequences.
class RowSteps : public Contender {
 public:
  RowSteps(Engine* engine, std::span<const Reader> readers, std::int64_t steps)
      : engine_(engine), readers_(readers), steps_(steps) {}

  void Run() override {
    for (const Reader& reader : readers_) {
      engine_->Rewind(reader.sequence, reader.after_context);
      engine_->Submit(reader.sequence,
                      {.prompt = {}, .max_new_tokens = steps_ + 1, .ignore_end_tokens = true});
    }
    StepAll(engine_);  // the first token of each is known already
    const EngineMetrics before = engine_->metrics();
    std::vector<double> seconds;
    while (engine_->HasWork()) {
      const auto begin = Clock::now();
      StepAll(engine_);
      seconds.push_back(SecondsSince(begin));
    }
    CAROUSEL_CHECK_EQ(std::ssize(seconds), steps_);
    const EngineMetrics after = engine_->metrics();
    const double each = 1e3 / static_cast<double>(steps_);
    times_.whole.push_back(1e3 * SpreadOf(std::move(seconds)).median);
    times_.forward.push_back(each * (after.forward_seconds - before.forward_seconds));
    times_.attention.push_back(each * (after.attention_seconds - before.attention_seconds));
  }

  std::int64_t rows() const { return std::ssize(readers_); }
  const StepTimes& times() const { return times_; }

 private:
  Engine* engine_;
  std::span<const Reader> readers_;
  std::int64_t steps_;
  StepTimes times_;
};

// Without the warm-up.
Spread SpreadOfRounds(const std::vector<double>& values) {
  return SpreadOf({values.begin() + 1, values.end()});
}

// Round by round.
Spread RatioOf(const std::vector<double>& values, const std::vector<double>& others) {
  std::vector<double> ratios;
  for (std::size_t i = 0; i < values.size(); ++i) ratios.push_back(values[i] / others[i]);
  return SpreadOfRounds(ratios);
}

void AddSpread(const std::string& name, const Spread& spread, ordered_json* line) {
  (*line)[name] = spread.median;
  (*line)[name + "_least"] = spread.least;
  (*line)[name + "_most"] = spread.most;
}

ordered_json Line(const RowSteps& steps, const RowSteps& one_row, const BenchRowsFlags& flags,
                  const Engine& engine) {
  const Spread whole = SpreadOfRounds(steps.times().whole);
  ordered_json line{{"type", "rows"},
                    {"engine", "carousel"},
                    {"model", engine.model().spec().name},
                    {"rows", steps.rows()},
                    {"context", flags.context},
                    {"threads", flags.model.threads},
                    {"batch_invariant", engine.config().scheduler.batch_invariant},
                    {"tokens_per_s", 1e3 * static_cast<double>(steps.rows()) / whole.median},
                    {"forward_ms", SpreadOfRounds(steps.times().forward).median},
                    {"attention_ms", SpreadOfRounds(steps.times().attention).median},
                    {"peak_rss_bytes", ReadProcessMemory().peak_rss_bytes}};
  AddSpread("step_ms", whole, &line);
  AddSpread("over_one_row", RatioOf(steps.times().whole, one_row.times().whole), &line);
  return line;
}

std::string Row(const ordered_json& line) {
  const auto spread = [&](const std::string& name) {
    return fmt::format("{:.2f} ({:.2f} to {:.2f})", line[name].get<double>(),
                       line[name + "_least"].get<double>(), line[name + "_most"].get<double>());
  };
  return fmt::format("{:>6} {:>28} {:>24} {:>10.2f} {:>10.1f}\n", line["rows"].get<std::int64_t>(),
                     spread("step_ms"), spread("over_one_row"), line["attention_ms"].get<double>(),
                     line["tokens_per_s"].get<double>());
}

// Ascending, and one row among them, against which the others are held.
std::vector<std::int64_t> RowsToTime(const BenchRowsFlags& flags, const ModelSpec& spec) {
  std::vector<std::int64_t> rows = flags.rows;
  rows.push_back(1);
  std::sort(rows.begin(), rows.end());
  rows.erase(std::unique(rows.begin(), rows.end()), rows.end());
  if (spec.one_sequence_per_step && rows.back() > 1) {
    throw Error(ErrorCode::kInvalidArgument, "rows",
                fmt::format("{} is more than this model's graph can take: one sequence in a step; "
                            "use 1",
                            rows.back()));
  }
  return rows;
}

}  // namespace

int RunBenchRows(const BenchRowsFlags& flags, Backend* backend, Console* console) {
  std::optional<WholeFile> file;
  if (!flags.json.empty()) file.emplace(flags.json, console->out.fd());
  const bool table = flags.json != "-";
  std::unique_ptr<Model> model = backend->LoadModel(flags.model);
  const std::vector<std::int64_t> rows = RowsToTime(flags, model->spec());
  EngineConfig config = flags.config;
  config.scheduler.max_running = rows.back();
  const auto engine = Engine::Create(std::move(model), config);
  if (table)
    console->out.Write(
        fmt::format("{}; steps of one token at {} tokens; milliseconds, median (least to most)\n"
                    "{:>6} {:>28} {:>24} {:>10} {:>10}\n",
                    engine->model().spec().name, Grouped(flags.context), "rows", "step",
                    "over one row", "attention", "tokens/s"));
  const std::vector<Reader> readers = ReadContexts(engine.get(), rows.back(), flags.context);
  std::vector<RowSteps> all;
  for (const std::int64_t count : rows) {
    all.emplace_back(engine.get(), std::span(readers).first(static_cast<std::size_t>(count)),
                     flags.steps);
  }
  std::vector<Contender*> contenders;
  for (RowSteps& steps : all) contenders.push_back(&steps);
  Progress progress(&console->err);
  TakeTurns(contenders, {.count = flags.rounds, .enough_seconds = 1e9}, [&](std::int64_t round) {
    progress.Show(fmt::format("round {} of {}", round, flags.rounds));
  });
  progress.Hide();
  std::string lines;
  for (const RowSteps& steps : all) {
    const ordered_json line = Line(steps, all.front(), flags, *engine);
    if (table) console->out.Write(Row(line));
    lines += line.dump() + "\n";
  }
  if (file) file->Write(lines);
  return 0;
}

}  // namespace carousel
