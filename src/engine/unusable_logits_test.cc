// SPDX-License-Identifier: Apache-2.0
// Logits that are no numbers end a step with an error; they never become tokens.
#include <gtest/gtest.h>

#include <cmath>
#include <limits>
#include <memory>
#include <string>
#include <vector>

#include "carousel/error.h"
#include "carousel/single_sequence_engine.h"
#include "engine/tiny_model.h"
#include "testing/poisoned_model.h"

namespace carousel {
namespace {

constexpr float kInfinity = std::numeric_limits<float>::infinity();
constexpr float kNaN = std::numeric_limits<float>::quiet_NaN();

struct Outcome {
  std::string problem;  // of the error; empty: there was none
  int tokens = 0;       // that came before
  std::vector<double> scores;
};

// An engine in chunks of 32 tokens, over a model that goes bad.
class PoisonedEngine {
 public:
  explicit PoisonedEngine(const Poison& poison) : poison_(poison) {
    EngineConfig config;
    config.cache = {.block_size = 8, .key_type = KvType::kF32, .value_type = KvType::kF32};
    config.chunk_size = 32;
    config.eviction = EvictionConfig{.start_size = 8, .recent_size = 16, .max_cache_size = 64};
    engine_ = SingleSequenceEngine::Create(
        std::make_unique<PoisonedModel>(std::make_unique<TinyModel>(TinyModelOptions{}), &poison_),
        config);
    poison_.active = true;
  }

  // Runs until the end or an error.
  Outcome Run(Request request) {
    Outcome outcome;
    engine_->Submit(std::move(request));
    try {
      while (engine_->HasWork()) {
        const StepResult step = engine_->Step();
        if (step.sampled) ++outcome.tokens;
        outcome.scores.insert(outcome.scores.end(), step.negative_log_likelihood.begin(),
                              step.negative_log_likelihood.end());
      }
    } catch (const Error& error) {
      EXPECT_EQ(error.code(), ErrorCode::kModel);
      EXPECT_EQ(error.field(), "model");
      outcome.problem = error.problem();
    }
    return outcome;
  }
  SingleSequenceEngine& engine() { return *engine_; }
  Poison& poison() { return poison_; }

 private:
  Poison poison_;
  std::unique_ptr<SingleSequenceEngine> engine_;
};

std::vector<TokenId> Prompt(std::size_t count) { return std::vector<TokenId>(count, 5); }

std::string Problem(std::int64_t tokens, const std::string& what) {
  return "after " + std::to_string(tokens) + " tokens of the sequence " + what +
         ", so there is no next word; compute in float32 (--precision f32), or import the model "
         "again";
}

TEST(UnusableLogits, EndAnAnswerAtTheStep) {
  const SamplingParams chat = {
      .temperature = 0.7, .top_p = 0.95, .repetition_penalty = 1.1, .penalty_window = 256};
  for (const SamplingParams& sampling : {SamplingParams{}, chat}) {
    for (const bool forced : {false, true}) {
      Request request{.prompt = Prompt(10),
                      .max_new_tokens = 8,
                      .ignore_end_tokens = true,
                      .sampling = sampling};
      if (forced) request.forced_answer = {1, 2, 3, 4, 5, 6, 7, 8};
      PoisonedEngine bad({.after_tokens = 13, .logit = kNaN, .first_word = 17});
      const Outcome outcome = bad.Run(request);
      EXPECT_EQ(outcome.problem, Problem(13, "the logit of word 17 is NaN"));
      EXPECT_EQ(outcome.tokens, 3);  // after 10, 11 and 12
      EXPECT_TRUE(bad.engine().HasWork());
    }
  }
}

TEST(UnusableLogits, EndAScoredPromptWhereverTheyAre) {
  for (const std::int64_t at : {1, 5, 31, 32, 33, 50, 69}) {
    PoisonedEngine bad({.after_tokens = at, .logit = kNaN});
    const Outcome outcome = bad.Run({.prompt = Prompt(70), .score_prompt = true});
    EXPECT_EQ(outcome.problem, Problem(at, "the logit of word 0 is NaN"));
    EXPECT_LT(std::ssize(outcome.scores), at);
    for (const double nats : outcome.scores) EXPECT_TRUE(std::isfinite(nats));
  }
}

// Before the next chunk, whose plan sorts the blocks by attention that may be no number either.
TEST(UnusableLogits, EndAPromptAtItsChunk) {
  PoisonedEngine bad({.after_tokens = 40, .logit = kNaN});
  EXPECT_EQ(bad.Run({.prompt = Prompt(200)}).problem, Problem(64, "the logit of word 0 is NaN"));
}

TEST(UnusableLogits, AreInfiniteOnesToo) {
  for (const bool scored : {false, true}) {
    PoisonedEngine bad({.after_tokens = 12, .logit = kInfinity, .words = 2, .first_word = 3});
    EXPECT_EQ(bad.Run({.prompt = Prompt(10),
                       .max_new_tokens = 8,
                       .ignore_end_tokens = true,
                       .score_prompt = scored})
                  .problem,
              Problem(12, "the logit of word 3 is infinite"));
  }
}

TEST(UnusableLogits, AreNotThoseOfMaskedWordsUnlessAllAre) {
  const Request request{.prompt = Prompt(10),
                        .max_new_tokens = 8,
                        .ignore_end_tokens = true,
                        .score_prompt = true,
                        .sampling = {.temperature = 5.0, .logprobs = 20}};
  PoisonedEngine masked({.logit = -kInfinity, .words = 58});  // of 61
  const Outcome outcome = masked.Run(request);
  EXPECT_EQ(outcome.problem, "");
  EXPECT_EQ(outcome.tokens, 8);
  for (const double nats : outcome.scores) EXPECT_EQ(nats, HUGE_VAL);  // word 5 is masked
  PoisonedEngine empty({.after_tokens = 11, .logit = -kInfinity, .words = 61});
  EXPECT_EQ(empty.Run(request).problem, Problem(11, "every logit is -infinity"));
}

TEST(UnusableLogits, LeaveASequenceThatCanBeReset) {
  PoisonedEngine bad({.after_tokens = 12});
  const Request request{.prompt = Prompt(10), .max_new_tokens = 8, .ignore_end_tokens = true};
  EXPECT_NE(bad.Run(request).problem, "");
  bad.poison().active = false;
  bad.engine().Reset();
  EXPECT_EQ(bad.Run(request).tokens, 8);
}

}  // namespace
}  // namespace carousel
