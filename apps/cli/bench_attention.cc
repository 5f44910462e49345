// SPDX-License-Identifier: Apache-2.0
// carousel bench attention: our kernel, OpenVINO's, and what the machine could do at most.
#include <fmt/format.h>

#include <algorithm>
#include <cmath>
#include <memory>
#include <nlohmann/json.hpp>
#include <optional>
#include <string>
#include <utility>
#include <vector>

#include "base/parallel.h"
#include "carousel/error.h"
#include "cli/commands.h"
#include "cli/numbers.h"
#include "cli/progress.h"
#include "cli/whole_file.h"
#include "measure/attention_load.h"
#include "measure/contender.h"
#include "measure/eviction_cost.h"
#include "measure/machine_speed.h"
#include "measure/our_attention.h"

namespace carousel {
namespace {

using nlohmann::ordered_json;

// Decode reads so many times the last-level cache before it comes back to the same bytes, so that
// it measures memory, which is where a model's caches are when the rest of the model has gone
// through.
constexpr std::int64_t kCacheTimes = 4;
// A long context needs no whole model for that, and memory has an end. Of a contender's f32 caches.
constexpr std::int64_t kMostBytes = std::int64_t{512} << 20;
// Prompts are bound by arithmetic: as many layers as make a run long enough to be timed.
constexpr double kFlopsOfRun = 8e9;

struct PhaseOfContext {
  bool is_decode = true;
  std::int64_t context = 0;
  std::int64_t queries = 0;
  double memory_gb_per_s = 0.0;  // that a plain sum reads meanwhile
};

AttentionShape ShapeOf(const BenchAttentionFlags& flags, Backend* backend) {
  AttentionShape shape = DefaultAttentionShape();
  if (flags.shape_of.empty()) return shape;
  const std::unique_ptr<Model> model =
      backend->LoadModel({.directory = flags.shape_of, .threads = flags.threads});
  const AttentionLayerSpec& first = model->spec().layers.front();
  // Heads and scale alone: windows, slopes and sinks are not what is compared.
  shape.layer = {.name = first.name,
                 .query_heads = first.query_heads,
                 .kv_heads = first.kv_heads,
                 .key_dim = first.key_dim,
                 .value_dim = first.value_dim,
                 .scale = first.scale};
  shape.layers = static_cast<std::int64_t>(model->spec().layers.size());
  return shape;
}

// How many of the model's layers a run goes through.
std::int64_t LayersOfRun(const AttentionShape& shape, bool is_decode) {
  const AttentionLayerSpec& layer = shape.layer;
  const double bytes =
      4.0 * static_cast<double>(shape.context * layer.kv_heads * (layer.key_dim + layer.value_dim));
  const double wanted =
      is_decode ? static_cast<double>(kMostBytes) / bytes : kFlopsOfRun / shape.FlopsPerLayer();
  return std::clamp<std::int64_t>(std::llround(std::ceil(std::min(wanted, 1e6))), 1, shape.layers);
}

// What is known of one contender once it has been timed.
struct Figures {
  Spread seconds;  // per layer
  double gb_per_s = 0.0;
  double gflop_per_s = 0.0;
};

Figures FiguresOf(const AttentionContender::Facts& facts, const AttentionShape& shape,
                  const Spread& run) {
  const auto layers = static_cast<double>(facts.layers);
  const Spread seconds = {run.median / layers, run.least / layers, run.most / layers};
  return {.seconds = seconds,
          .gb_per_s = static_cast<double>(facts.bytes_per_layer) / seconds.median * 1e-9,
          .gflop_per_s = shape.FlopsPerLayer() / seconds.median * 1e-9};
}

class AttentionBench {
 public:
  AttentionBench(const BenchAttentionFlags& flags, Backend* backend, Console* console)
      : flags_(flags), backend_(backend), console_(console), progress_(&console->err) {
    if (!flags.json.empty()) file_.emplace(flags.json, console->out.fd());
    table_ = flags.json != "-";
  }

  void Run() {
    SetThreadCount(flags_.threads);
    model_shape_ = ShapeOf(flags_, backend_);
    progress_.Show("measuring the machine");
    machine_ = MeasureMachine();
    ReportMachine();
    for (const std::int64_t context : flags_.contexts) {
      if (flags_.decode) RunPhase({.is_decode = true, .context = context, .queries = 1});
      const std::int64_t queries = flags_.queries > 0 ? flags_.queries : context;
      if (flags_.prompt) RunPhase({.is_decode = false, .context = context, .queries = queries});
      if (flags_.eviction) RunEvictions(context);
    }
    if (file_) file_->Write(lines_);
  }

 private:
  using Contenders = std::vector<std::unique_ptr<AttentionContender>>;
  using Caches = std::vector<std::shared_ptr<const OurCaches>>;  // one for each type

  void RunPhase(PhaseOfContext phase);
  void RunEvictions(std::int64_t context);
  Caches MakeCaches(const AttentionLoad& load) const;
  Contenders MakeContenders(const AttentionLoad& load, const Caches& caches);
  void AddRivals(const AttentionLoad& load, Contenders* contenders);
  void ReportMachine();
  void ReportHeading(const PhaseOfContext& phase, const AttentionShape& shape);
  void Report(const PhaseOfContext& phase, const AttentionContender::Facts& facts,
              const Figures& figures);
  void ReportEviction(std::int64_t context, KvType type, Rotation rotation,
                      const EvictionCost& cost);
  void AddLine(const ordered_json& object) { lines_ += object.dump() + "\n"; }

  const BenchAttentionFlags& flags_;
  Backend* backend_;
  Console* console_;
  Progress progress_;
  std::optional<WholeFile> file_;
  bool table_ = true;
  AttentionShape model_shape_;
  MachineSpeed machine_;
  std::string lines_;
  bool told_of_no_rival_ = false;
};

void AttentionBench::RunPhase(PhaseOfContext phase) {
  AttentionShape shape = model_shape_;
  shape.context = phase.context;
  shape.queries = phase.queries;
  shape.layers = LayersOfRun(shape, phase.is_decode);
  const AttentionLoad load =
      MakeAttentionLoad(shape, phase.is_decode ? kCacheTimes * machine_.cache_bytes : 0);
  const Caches caches = MakeCaches(load);
  const Contenders contenders = MakeContenders(load, caches);
  std::vector<Contender*> runners;
  for (const auto& contender : contenders) runners.push_back(contender.get());
  // What memory gives changes while the program runs, so its reader takes part in every round.
  std::optional<MemoryReader> reader;
  if (phase.is_decode) runners.push_back(&reader.emplace(caches.front()->memory()));
  const std::vector<Spread> spreads = TakeTurns(
      runners, {.count = flags_.rounds, .enough_seconds = static_cast<double>(flags_.seconds)},
      [&](std::int64_t round) {
        progress_.Show(fmt::format(
            "{} over {} tokens: {}", phase.is_decode ? "decode" : "prompt", Grouped(phase.context),
            round == 0 ? std::string("warming up")
                       : fmt::format("round {} of {}", round, flags_.rounds)));
      });
  progress_.Hide();
  phase.memory_gb_per_s = reader
                              ? static_cast<double>(reader->bytes()) / spreads.back().median * 1e-9
                              : machine_.memory_gb_per_s;
  ReportHeading(phase, shape);
  for (std::size_t i = 0; i < contenders.size(); ++i) {
    const AttentionContender::Facts& facts = contenders[i]->facts();
    Report(phase, facts, FiguresOf(facts, shape, spreads[i]));
  }
}

void AttentionBench::RunEvictions(std::int64_t context) {
  AttentionShape shape = model_shape_;
  shape.context = context;
  shape.queries = shape.block_size;
  shape.layers = 1;
  const AttentionLoad load = MakeAttentionLoad(shape, 0);
  progress_.Hide();
  if (table_)
    console_->out.Write(
        fmt::format("\neviction: a block out of {} tokens\n{:<9} {:<5} {:>13} {:>26} {:>15}\n",
                    Grouped(context), "rotation", "cache", "us per layer", "(least to most)",
                    "rewritten keys"));
  for (const KvType type : flags_.kv_types) {
    for (const Rotation rotation : {Rotation::kQuery, Rotation::kKeys}) {
      const EvictionCost cost =
          MeasureEviction(load, type, rotation, flags_.rounds, [&](std::int64_t round) {
            progress_.Show(fmt::format(
                "eviction out of {} tokens: {}", Grouped(context),
                round == 0 ? std::string("filling the cache") : fmt::format("round {}", round)));
          });
      progress_.Hide();
      ReportEviction(context, type, rotation, cost);
    }
  }
}

void AttentionBench::ReportEviction(std::int64_t context, KvType type, Rotation rotation,
                                    const EvictionCost& cost) {
  const Spread& seconds = cost.seconds;
  if (table_) {
    console_->out.Write(fmt::format(
        "{:<9} {:<5} {:>13.2f} {:>26} {:>15}\n", Name(rotation), Name(type), 1e6 * seconds.median,
        fmt::format("({:.2f} to {:.2f})", 1e6 * seconds.least, 1e6 * seconds.most),
        Grouped(cost.rewritten_keys)));
  }
  AddLine({{"type", "eviction"},
           {"rotation", Name(rotation)},
           {"context", context},
           {"kv_type", Name(type)},
           {"seconds", seconds.median},
           {"seconds_least", seconds.least},
           {"seconds_most", seconds.most},
           {"rewritten_keys", cost.rewritten_keys}});
}

AttentionBench::Caches AttentionBench::MakeCaches(const AttentionLoad& load) const {
  Caches caches;
  for (const KvType type : flags_.kv_types)
    caches.push_back(std::make_shared<const OurCaches>(load, type));
  return caches;
}

AttentionBench::Contenders AttentionBench::MakeContenders(const AttentionLoad& load,
                                                          const Caches& caches) {
  Contenders contenders;
  for (const auto& of_type : caches) {
    for (const std::int64_t shifts : flags_.shifts)
      contenders.push_back(std::make_unique<OurAttention>(load, of_type, shifts));
  }
  if (!flags_.no_openvino) AddRivals(load, &contenders);
  return contenders;
}

void AttentionBench::AddRivals(const AttentionLoad& load, Contenders* contenders) {
  Contenders rivals;
  try {
    rivals = backend_->RivalAttention(load);
  } catch (const Error& error) {
    throw Error(error.code(), error.field(),
                error.problem() + "; --no-openvino measures ours alone");
  }
  if (rivals.empty() && !std::exchange(told_of_no_rival_, true)) {
    progress_.Hide();
    console_->err.TryWrite(
        "carousel: note: there is no OpenVINO in this program; ours is measured alone\n");
  }
  for (auto& rival : rivals) contenders->push_back(std::move(rival));
}

void AttentionBench::ReportMachine() {
  progress_.Hide();
  if (table_)
    console_->out.Write(
        fmt::format("{}, {} threads: memory {:.1f} GB/s, multiply-adds {:.1f} "
                    "GFLOP/s, last-level cache {}\n",
                    machine_.target, machine_.threads, machine_.memory_gb_per_s,
                    machine_.peak_gflop_per_s, Megabytes(machine_.cache_bytes)));
  const AttentionLayerSpec& layer = model_shape_.layer;
  AddLine({{"type", "machine"},
           {"target", machine_.target},
           {"threads", machine_.threads},
           {"cache_bytes", machine_.cache_bytes},
           {"memory_gb_per_s", machine_.memory_gb_per_s},
           {"peak_gflop_per_s", machine_.peak_gflop_per_s},
           {"query_heads", layer.query_heads},
           {"kv_heads", layer.kv_heads},
           {"key_dim", layer.key_dim},
           {"value_dim", layer.value_dim}});
}

void AttentionBench::ReportHeading(const PhaseOfContext& phase, const AttentionShape& shape) {
  if (!table_) return;
  const AttentionLayerSpec& layer = shape.layer;
  console_->out.Write(fmt::format(
      "\n{}: {} {} over {} tokens, {} query heads, {} KV heads of {}; memory {:.1f} GB/s\n"
      "{:<9} {:<5} {:<12} {:>12} {:>26} {:>7} {:>5} {:>9} {:>5}\n",
      phase.is_decode ? "decode" : "prompt", Grouped(phase.queries),
      phase.queries == 1 ? "query" : "queries", Grouped(phase.context), layer.query_heads,
      layer.kv_heads, layer.key_dim, phase.memory_gb_per_s, "engine", "cache", "shifts",
      "us per layer", "(least to most)", "GB/s", "%", "GFLOP/s", "%"));
}

void AttentionBench::Report(const PhaseOfContext& phase, const AttentionContender::Facts& facts,
                            const Figures& figures) {
  const double memory_percent = 100.0 * figures.gb_per_s / phase.memory_gb_per_s;
  const double peak_percent = 100.0 * figures.gflop_per_s / machine_.peak_gflop_per_s;
  const Spread& seconds = figures.seconds;
  if (table_) {
    console_->out.Write(
        fmt::format("{:<9} {:<5} {:<12} {:>12.1f} {:>26} {:>7.2f} {:>5.1f} {:>9.1f} {:>5.1f}\n",
                    facts.engine, facts.kv_type, facts.shifts, 1e6 * seconds.median,
                    fmt::format("({:.1f} to {:.1f})", 1e6 * seconds.least, 1e6 * seconds.most),
                    figures.gb_per_s, memory_percent, figures.gflop_per_s, peak_percent));
  }
  AddLine({{"type", "attention"},
           {"engine", facts.engine},
           {"phase", phase.is_decode ? "decode" : "prompt"},
           {"context", phase.context},
           {"queries", phase.queries},
           {"kv_type", facts.kv_type},
           {"shifts", facts.shifts},
           {"threads", facts.threads},
           {"layers", facts.layers},
           {"bytes_per_layer", facts.bytes_per_layer},
           {"seconds", seconds.median},
           {"seconds_least", seconds.least},
           {"seconds_most", seconds.most},
           {"gb_per_s", figures.gb_per_s},
           {"memory_gb_per_s", phase.memory_gb_per_s},
           {"memory_percent", memory_percent},
           {"gflop_per_s", figures.gflop_per_s},
           {"peak_percent", peak_percent}});
}

}  // namespace

int RunBenchAttention(const BenchAttentionFlags& flags, Backend* backend, Console* console) {
  AttentionBench(flags, backend, console).Run();
  return 0;
}

}  // namespace carousel
