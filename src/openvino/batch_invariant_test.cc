// SPDX-License-Identifier: Apache-2.0
// On real weights: with batch_invariant an answer is the same in every bit, whoever runs beside it
// and in whatever order requests come, evictions, recall and shared beginnings included.
#include <gtest/gtest.h>

#include <algorithm>
#include <cstdint>
#include <exception>
#include <filesystem>
#include <map>
#include <memory>
#include <numeric>
#include <string>
#include <vector>

#include "carousel/engine.h"
#include "measure/borrowed_model.h"
#include "openvino/openvino_model.h"
#include "testing/default_model.h"

namespace carousel {
namespace {

struct Answer {
  std::vector<TokenId> tokens;
  std::vector<float> logits;  // [tokens, vocabulary]
  friend bool operator==(const Answer&, const Answer&) = default;
};

// What a load came to, beside its answers.
struct Effects {
  std::int64_t evicted_tokens = 0;
  std::int64_t recalled_blocks = 0;
  std::int64_t reused_tokens = 0;
};

constexpr std::size_t kRequests = 8;

EngineConfig Config(std::int64_t concurrency) {
  EngineConfig config;
  config.chunk_size = 128;
  config.eviction = EvictionConfig{.start_size = 32, .recent_size = 64, .max_cache_size = 192};
  config.recall = {.blocks = 2};
  config.checkpoint_bytes = std::int64_t{64} << 20;
  config.scheduler.max_running = concurrency;
  config.scheduler.batch_invariant = true;
  return config;
}

// Every third keeps all. All of more than 300 tokens begin alike.
Request RequestOf(std::size_t index, std::int64_t vocabulary) {
  constexpr std::int64_t kPrompts[kRequests] = {1, 7, 40, 129, 320, 350, 480, 230};
  constexpr std::int64_t kAnswers[kRequests] = {12, 10, 8, 9, 7, 9, 5, 11};
  Request request{.max_new_tokens = kAnswers[index], .ignore_end_tokens = true};
  const bool begins_alike = kPrompts[index] > 300;
  std::uint64_t state = begins_alike ? 1 : index + 2;
  for (std::int64_t i = 0; i < kPrompts[index]; ++i) {
    if (i == 300) state += index;
    state = state * 6364136223846793005ULL + 1442695040888963407ULL;
    request.prompt.push_back(
        static_cast<TokenId>((state >> 33) % static_cast<std::uint64_t>(vocabulary)));
  }
  request.keep_logits = true;
  return request;
}

class BatchInvariantTest : public ::testing::TestWithParam<std::string> {
 protected:
  void SetUp() override {
    const std::filesystem::path folder =
        GetParam().empty() ? testing::DefaultModelDirectory()
                           : std::filesystem::path(CAROUSEL_SOURCE_DIR) / "models" / GetParam();
    if (!std::filesystem::exists(folder)) GTEST_SKIP() << "there is no model at " << folder;
    model_ = LoadOpenVinoModel({.directory = folder});
  }

  // The requests of these numbers, submitted in this order.
  std::map<std::size_t, Answer> AnswersOf(const std::vector<std::size_t>& order,
                                          std::int64_t concurrency, Effects* effects) {
    const EngineConfig config = Config(concurrency);
    EngineConfig whole = config;
    whole.eviction.reset();
    whole.recall = {.blocks = 0};
    const auto engine = Engine::Create(std::make_unique<BorrowedModel>(model_.get()), config);
    std::map<SequenceId, std::size_t> asked;
    for (const std::size_t index : order) {
      const SequenceId sequence = engine->Open(index % 3 == 0 ? whole : config);
      engine->Submit(sequence, RequestOf(index, model_->spec().vocabulary_size));
      asked[sequence] = index;
    }
    std::map<std::size_t, Answer> answers;
    while (engine->HasWork()) {
      for (const StepOutput& output : engine->Step()) {
        if (output.failure) std::rethrow_exception(output.failure);
        const StepResult& result = output.result;
        if (!result.sampled) continue;
        Answer& answer = answers[asked.at(output.sequence)];
        answer.tokens.push_back(result.sampled->token);
        answer.logits.insert(answer.logits.end(), result.logits.begin(), result.logits.end());
      }
    }
    for (const auto& [sequence, index] : asked)
      effects->recalled_blocks += engine->metrics(sequence).recalled_blocks;
    effects->evicted_tokens += engine->metrics().evicted_tokens;
    effects->reused_tokens += engine->metrics().reused_tokens;
    return answers;
  }

  std::unique_ptr<Model> model_;
};

TEST_P(BatchInvariantTest, AnswersAreThoseGivenAlone) {
  std::map<std::size_t, Answer> alone;
  Effects of_alone;
  for (std::size_t index = 0; index < kRequests; ++index) {
    alone.merge(AnswersOf({index}, 1, &of_alone));
    EXPECT_FALSE(alone.at(index).tokens.empty());
  }
  EXPECT_EQ(of_alone.reused_tokens, 0);
  std::vector<std::size_t> order(kRequests);
  std::iota(order.begin(), order.end(), std::size_t{0});
  for (const std::int64_t concurrency : {4, 8}) {
    Effects effects;
    const auto beside = AnswersOf(order, concurrency, &effects);
    for (const auto& [index, answer] : beside) {
      EXPECT_EQ(answer.tokens, alone.at(index).tokens) << "request " << index;
      EXPECT_TRUE(answer.logits == alone.at(index).logits) << "request " << index;
    }
    EXPECT_EQ(beside.size(), kRequests);
    EXPECT_EQ(effects.recalled_blocks, of_alone.recalled_blocks);
    EXPECT_GT(effects.evicted_tokens, 0);
    EXPECT_GT(effects.recalled_blocks, 0);
    EXPECT_GT(effects.reused_tokens, 0);
    std::rotate(order.begin(), order.begin() + 3, order.end());
    std::reverse(order.begin(), order.end());
  }
}

INSTANTIATE_TEST_SUITE_P(, BatchInvariantTest, ::testing::Values("", "gemma3-270m"),
                         [](const auto& model) {
                           return std::string(model.index == 0 ? "DefaultModel" : "Gemma3");
                         });

}  // namespace
}  // namespace carousel
