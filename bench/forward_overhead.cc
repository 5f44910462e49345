// SPDX-License-Identifier: Apache-2.0
// What the rewritten model costs outside attention, against the model as OpenVINO runs it by
// itself.
//
//   forward_overhead MODEL_DIR [THREADS [RUNS]]
//
// Both run in one process, in turns, on the same tokens and with logits for the last one only. Ours
// attends to nothing (its callback writes zeros; the time inside is taken off). The plain model
// attends to as many tokens as it is given, which is taken off too: the share of its attention
// nodes is read from OpenVINO's profile of a third, profiled model. Prints medians with quartiles,
// and the quotient that issue 3 limits.
#include <fmt/format.h>

#include <algorithm>
#include <chrono>
#include <cstdlib>
#include <exception>
#include <memory>
#include <numeric>
#include <string>
#include <vector>

#include "models/plain_model.h"
#include "openvino/openvino_model.h"

namespace carousel {
namespace {

using Clock = std::chrono::steady_clock;
using testing::PlainModel;

double MillisecondsSince(Clock::time_point begin) {
  return std::chrono::duration<double, std::milli>(Clock::now() - begin).count();
}

// Writes zeros, and keeps the time that takes.
class NoAttention : public AttentionCallback {
 public:
  explicit NoAttention(const ModelSpec& spec) : spec_(spec) {}
  void Attend(std::int64_t layer, std::int64_t tokens, const float*, const float*, const float*,
              float* out) override {
    const auto begin = Clock::now();
    const AttentionLayerSpec& of_layer = spec_.layers[static_cast<std::size_t>(layer)];
    std::fill_n(out, tokens * of_layer.query_heads * of_layer.value_dim, 0.0F);
    milliseconds += MillisecondsSince(begin);
  }
  double milliseconds = 0.0;

 private:
  const ModelSpec& spec_;
};

struct Spread {
  double lower = 0.0;  // quartile
  double median = 0.0;
  double upper = 0.0;
};

Spread SpreadOf(std::vector<double> values) {
  std::sort(values.begin(), values.end());
  const std::size_t count = values.size();
  return {values[count / 4], values[count / 2], values[count * 3 / 4]};
}

class Comparison {
 public:
  Comparison(const std::string& directory, std::int64_t threads)
      : directory_(directory),
        threads_(threads),
        ours_(LoadOpenVinoModel({.directory = directory, .threads = threads})),
        no_attention_(ours_->spec()),
        plain_({.directory = directory, .threads = threads, .last_row_only = true}) {}

  void Run(std::int64_t tokens, std::int64_t runs) {
    // OpenVINO's profile is the mean over all steps of a request, so each size has a request of its
    // own.
    PlainModel profiled(
        {.directory = directory_, .threads = threads_, .last_row_only = true, .has_profile = true});
    std::vector<double> ours;
    std::vector<double> plain;
    constexpr std::int64_t kWarmUp = 3;
    for (std::int64_t run = -kWarmUp; run < runs; ++run) {
      const bool ours_first = run % 2 == 0;
      const double first = ours_first ? StepOurs(tokens) : StepPlain(plain_, tokens);
      const double second = ours_first ? StepPlain(plain_, tokens) : StepOurs(tokens);
      StepPlain(profiled, tokens);
      if (run < 0) continue;
      ours.push_back(ours_first ? first : second);
      plain.push_back(ours_first ? second : first);
    }
    const double attention = profiled.AttentionMilliseconds();
    std::vector<double> quotients;
    for (std::size_t i = 0; i < ours.size(); ++i)
      quotients.push_back(ours[i] / (plain[i] - attention));
    Report(tokens, SpreadOf(ours), SpreadOf(plain), attention, SpreadOf(quotients));
  }

 private:
  double StepOurs(std::int64_t tokens) {
    const std::vector<TokenId> ids(static_cast<std::size_t>(tokens), 1);
    std::vector<std::int64_t> positions(static_cast<std::size_t>(tokens));
    std::iota(positions.begin(), positions.end(), 1);
    const std::vector<std::int64_t> rows = {tokens - 1};
    no_attention_.milliseconds = 0.0;
    const auto begin = Clock::now();
    ours_->Forward({ids, positions, rows}, no_attention_);
    return MillisecondsSince(begin) - no_attention_.milliseconds;
  }

  double StepPlain(PlainModel& model, std::int64_t tokens) {
    // On an empty state, which is where the plain model is fastest: it then has nothing to move.
    model.Forget();
    const std::vector<TokenId> ids(static_cast<std::size_t>(tokens), 1);
    const auto begin = Clock::now();
    model.Step(ids);
    return MillisecondsSince(begin);
  }

  static void Report(std::int64_t tokens, const Spread& ours, const Spread& plain, double attention,
                     const Spread& quotient) {
    const auto text = [](const Spread& spread) {
      return fmt::format("{:.2f} ({:.2f} to {:.2f})", spread.median, spread.lower, spread.upper);
    };
    fmt::print("{:4} tokens: ours without attention {} ms\n", tokens, text(ours));
    fmt::print("             plain {} ms, of which attention {:.2f} ms\n", text(plain), attention);
    fmt::print(
        "             ours / plain without attention {:.3f}; run by run {:.3f} ({:.3f} to "
        "{:.3f})\n",
        ours.median / (plain.median - attention), quotient.median, quotient.lower, quotient.upper);
  }

  std::string directory_;
  std::int64_t threads_;
  std::unique_ptr<Model> ours_;
  NoAttention no_attention_;
  PlainModel plain_;
};

}  // namespace
}  // namespace carousel

int main(int count, char** values) {
  if (count < 2) {
    fmt::print(stderr, "usage: forward_overhead MODEL_DIR [THREADS [RUNS]]\n");
    return 2;
  }
  try {
    carousel::Comparison comparison(values[1], count > 2 ? std::atoll(values[2]) : 0);
    const std::int64_t runs = count > 3 ? std::atoll(values[3]) : 40;
    for (const std::int64_t tokens : {1, 32, 256}) comparison.Run(tokens, runs);
  } catch (const std::exception& error) {
    fmt::print(stderr, "forward_overhead: {}\n", error.what());
    return 1;
  }
}
