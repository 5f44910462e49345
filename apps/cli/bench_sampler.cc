// SPDX-License-Identifier: Apache-2.0
// carousel bench sampler: what choosing a token costs in different ways, without a model.
#include <fmt/format.h>

#include <memory>
#include <nlohmann/json.hpp>
#include <optional>
#include <string>
#include <vector>

#include "cli/commands.h"
#include "cli/numbers.h"
#include "cli/progress.h"
#include "cli/whole_file.h"
#include "measure/contender.h"
#include "measure/sampling_cost.h"

namespace carousel {
namespace {

using nlohmann::ordered_json;

class SamplerBench {
 public:
  SamplerBench(const BenchSamplerFlags& flags, Console* console)
      : flags_(flags), console_(console), progress_(&console->err) {
    if (!flags.json.empty()) file_.emplace(flags.json, console->out.fd());
  }

  void Run() {
    for (const std::int64_t words : flags_.vocabularies) RunVocabulary(words);
    if (file_) file_->Write(lines_);
  }

 private:
  void RunVocabulary(std::int64_t words);
  void Report(std::int64_t words, const std::string& way, const Spread& run);

  const BenchSamplerFlags& flags_;
  Console* console_;
  Progress progress_;
  std::optional<WholeFile> file_;
  std::string lines_;
};

void SamplerBench::RunVocabulary(std::int64_t words) {
  progress_.Show(fmt::format("{} words: making logits", Grouped(words)));
  const LogitRows rows(words);
  std::vector<std::unique_ptr<SamplingContender>> contenders;
  std::vector<Contender*> runners;
  for (const NamedSampling& way : flags_.sampling) {
    contenders.push_back(std::make_unique<SamplingContender>(&rows, way.params, flags_.draws));
    runners.push_back(contenders.back().get());
  }
  const std::vector<Spread> spreads =
      TakeTurns(runners, {.count = flags_.rounds, .enough_seconds = 1e9}, [&](std::int64_t round) {
        progress_.Show(
            fmt::format("{} words: round {} of {}", Grouped(words), round, flags_.rounds));
      });
  progress_.Hide();
  if (flags_.json != "-")
    console_->out.Write(fmt::format("{} words\n{:<12} {:>13} {:>26}\n", Grouped(words), "sampling",
                                    "us per token", "(least to most)"));
  for (std::size_t i = 0; i < spreads.size(); ++i)
    Report(words, std::string(flags_.sampling[i].name), spreads[i]);
}

void SamplerBench::Report(std::int64_t words, const std::string& way, const Spread& run) {
  const auto draws = static_cast<double>(flags_.draws);
  if (flags_.json != "-")
    console_->out.Write(fmt::format(
        "{:<12} {:>13.1f} {:>26}\n", way, 1e6 * run.median / draws,
        fmt::format("({:.1f} to {:.1f})", 1e6 * run.least / draws, 1e6 * run.most / draws)));
  lines_ += ordered_json{{"type", "sampler"},
                         {"vocabulary_size", words},
                         {"sampling", way},
                         {"seconds", run.median / draws},
                         {"seconds_least", run.least / draws},
                         {"seconds_most", run.most / draws}}
                .dump() +
            "\n";
}

}  // namespace

int RunBenchSampler(const BenchSamplerFlags& flags, Console* console) {
  SamplerBench(flags, console).Run();
  return 0;
}

}  // namespace carousel
