// SPDX-License-Identifier: Apache-2.0
// A step that fails at any layer has not been: the sequence goes on bit for bit as one whose steps
// never fail.
#include <gtest/gtest.h>

#include <string>

#include "carousel/error.h"
#include "carousel/single_sequence_engine.h"
#include "engine/tiny_model.h"
#include "eviction/registry.h"
#include "testing/failing_model.h"
#include "testing/poisoned_model.h"
#include "testing/random_cases.h"
#include "testing/random_draws.h"

namespace carousel {
namespace {

TinyModelOptions RandomModel(Generator* generator) {
  TinyModelOptions model{.layers = 3, .trained_window = Pick(generator, 240, 600)};
  if (Pick(generator, 0, 3) == 0) model.sliding_window = {0, 24, 0};
  return model;
}

EngineConfig RandomConfig(Generator* generator) {
  const KvType types[] = {KvType::kF32, KvType::kF16, KvType::kInt8, KvType::kInt4};
  EngineConfig config;
  config.cache = {.block_size = 8,
                  .key_type = types[Pick(generator, 0, 3)],
                  .value_type = types[Pick(generator, 0, 3)]};
  if (config.cache.key_type == KvType::kInt4 || config.cache.value_type == KvType::kInt4)
    config.cache.block_size = 16;
  const std::int64_t block = config.cache.block_size;
  config.chunk_size = Pick(generator, block, 40);
  const auto policies = RegisteredPolicies();
  EvictionConfig eviction{.start_size = block, .recent_size = 16, .max_cache_size = 4 * block + 16};
  eviction.policy =
      policies[static_cast<std::size_t>(Pick(generator, 0, std::ssize(policies) - 1))].name;
  eviction.grouping = Pick(generator, 0, 1) == 0 ? Grouping::kLayer : Grouping::kHead;
  eviction.budget = Pick(generator, 0, 2) == 0 ? Budget::kAdaptive : Budget::kUniform;
  eviction.rotation = Pick(generator, 0, 2) == 0 ? Rotation::kKeys : Rotation::kQuery;
  if (Pick(generator, 0, 3) == 0) eviction.prompt_eviction = PromptEviction::kAtEnd;
  if (eviction.rotation == Rotation::kQuery && Pick(generator, 0, 3) > 0) {
    config.recall = {.blocks = 2, .chunk = Pick(generator, 1, 16), .every = Pick(generator, 1, 4)};
    config.recall.promotion = Pick(generator, 0, 1) == 0 ? 0.0 : 1.0;
  }
  config.eviction = eviction;
  return config;
}

Request RandomRequest(Generator* generator) {
  Request request{.prompt = Tokens(generator, Pick(generator, 1, 90)),
                  .max_new_tokens = Pick(generator, 0, 20),
                  .ignore_end_tokens = true,
                  .score_prompt = Pick(generator, 0, 1) == 0};
  request.penalise_prompt = Pick(generator, 0, 1) == 0;
  request.keep_logits = true;
  if (Pick(generator, 0, 1) == 0) {
    request.sampling = {.temperature = 1.0,
                        .top_p = 0.9,
                        .repetition_penalty = 1.2,
                        .seed = static_cast<std::uint64_t>(Pick(generator, 0, 1000))};
  }
  return request;
}

// All that a step says, and what the cache looks like after it.
std::vector<double> Numbers(const StepResult& step, const SingleSequenceEngine& engine) {
  std::vector<double> numbers(step.negative_log_likelihood);
  if (step.sampled) {
    numbers.push_back(step.sampled->token);
    numbers.push_back(static_cast<double>(step.sampled->logprob));
  }
  numbers.insert(numbers.end(), step.logits.begin(), step.logits.end());
  const SequenceMetrics metrics = engine.metrics();
  for (const std::int64_t count :
       {step.tokens_processed, step.evicted_tokens, static_cast<std::int64_t>(step.finish_reason),
        metrics.logical_tokens, metrics.resident_tokens, metrics.evicted_tokens, metrics.evictions,
        metrics.cache_bytes, metrics.recall_stored_tokens, metrics.recall_dropped_tokens,
        metrics.recalled_blocks, metrics.promoted_blocks}) {
    numbers.push_back(static_cast<double>(count));
  }
  numbers.push_back(metrics.requantisation_error);
  return numbers;
}

// An engine whose steps fail and its twin, whose never do.
class Twins {
 public:
  explicit Twins(Generator* generator)
      : generator_(generator), model_(RandomModel(generator)), config_(RandomConfig(generator)) {
    failing_ = SingleSequenceEngine::Create(
        std::make_unique<FailingModel>(std::make_unique<TinyModel>(model_), &failure_), config_);
    twin_ = SingleSequenceEngine::Create(std::make_unique<TinyModel>(model_), config_);
    if (Pick(generator, 0, 1) == 0) {
      failing_->GatherAttention(true);
      twin_->GatherAttention(true);
    }
  }

  std::string Describe() const {
    return config_.eviction->policy + ", " + std::string(Name(config_.eviction->rotation)) + ", " +
           std::string(Name(config_.cache.key_type)) + ", recall " +
           std::to_string(config_.recall.blocks);
  }

  // Runs a request in both. Returns how many steps failed.
  std::int64_t Play(const Request& request) {
    std::int64_t failures = 0;
    failing_->Submit(request);
    twin_->Submit(request);
    while (twin_->HasWork()) {
      const std::int64_t times = Pick(generator_, 0, 2);
      for (std::int64_t i = 0; i < times; ++i) failures += FailOnce();
      EXPECT_TRUE(failing_->HasWork());
      const StepResult step = failing_->Step();
      const StepResult expected = twin_->Step();
      EXPECT_EQ(Numbers(step, *failing_), Numbers(expected, *twin_));
      if (::testing::Test::HasFailure()) return failures;
      ExpectTheSameAttention();
    }
    EXPECT_FALSE(failing_->HasWork());
    return failures;
  }

  // A request that fails and is given up; the twin never hears of it.
  std::int64_t FailAndCancel(const Request& request) {
    failing_->Submit(request);
    const std::int64_t failures = FailOnce();
    EXPECT_THROW(failing_->Submit(request), Error);
    failing_->Cancel();
    EXPECT_EQ(failing_->Step().finish_reason, FinishReason::kCancelled);
    EXPECT_FALSE(failing_->HasWork());
    return failures;
  }

 private:
  std::int64_t FailOnce() {
    failure_ = {.layer = Pick(generator_, 0, 2), .after_attention = Pick(generator_, 0, 1) == 0};
    EXPECT_THROW(failing_->Step(), Error);
    failure_ = {};
    return 1;
  }

  void ExpectTheSameAttention() {
    for (std::int64_t group = 0; group < twin_->cache_groups(); ++group) {
      const auto ours = failing_->GatheredAttention(group);
      const auto theirs = twin_->GatheredAttention(group);
      ASSERT_EQ(ours.size(), theirs.size());
      for (std::size_t i = 0; i < ours.size(); ++i) {
        ASSERT_EQ(ours[i].first_token, theirs[i].first_token);
        ASSERT_EQ(ours[i].token_mass, theirs[i].token_mass);
      }
    }
  }

  Generator* generator_;
  TinyModelOptions model_;
  EngineConfig config_;
  Failure failure_;
  std::unique_ptr<SingleSequenceEngine> failing_;
  std::unique_ptr<SingleSequenceEngine> twin_;
};

TEST(AStepThatFails, HasNotBeen) {
  Generator generator(17);
  const std::int64_t wanted = RandomCases(10000);
  std::int64_t failures = 0;
  for (int scenario = 0; failures < wanted; ++scenario) {
    Twins twins(&generator);
    SCOPED_TRACE(std::to_string(scenario) + ": " + twins.Describe());
    for (std::int64_t turn = 0; turn < 4; ++turn) {
      // Before anything but prompts can have been evicted for: see Sequence.
      if (turn < 3 && Pick(&generator, 0, 2) == 0)
        failures += twins.FailAndCancel(RandomRequest(&generator));
      failures += twins.Play(RandomRequest(&generator));
      if (HasFailure()) return;
    }
  }
}

// The logits of a pass come after all its layers.
TEST(AStepThatFails, HasNotBeenWhenItsLogitsAreNoNumbers) {
  EngineConfig config;
  config.cache.block_size = 8;
  config.chunk_size = 16;
  config.eviction = EvictionConfig{.start_size = 8, .recent_size = 16, .max_cache_size = 48};
  config.recall = {.blocks = 2};
  Poison poison;
  const auto engine = SingleSequenceEngine::Create(
      std::make_unique<PoisonedModel>(std::make_unique<TinyModel>(TinyModelOptions{}), &poison),
      config);
  const auto twin =
      SingleSequenceEngine::Create(std::make_unique<TinyModel>(TinyModelOptions{}), config);
  Generator generator(3);
  const Request request{.prompt = Tokens(&generator, 100),
                        .max_new_tokens = 30,
                        .ignore_end_tokens = true,
                        .score_prompt = true,
                        .sampling = {.temperature = 1.0, .seed = 5}};
  engine->Submit(request);
  twin->Submit(request);
  while (twin->HasWork()) {
    poison.active = true;
    EXPECT_THROW(engine->Step(), Error);
    poison.active = false;
    const StepResult step = engine->Step();
    const StepResult expected = twin->Step();
    ASSERT_EQ(Numbers(step, *engine), Numbers(expected, *twin));
  }
}

}  // namespace
}  // namespace carousel
