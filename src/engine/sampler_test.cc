// SPDX-License-Identifier: Apache-2.0
#include "engine/sampler.h"

#include <gtest/gtest.h>

#include <algorithm>
#include <cmath>
#include <limits>
#include <map>
#include <random>
#include <span>

#include "carousel/error.h"
#include "engine/logits.h"

namespace carousel {
namespace {

std::vector<float> RandomLogits(std::size_t count, std::uint64_t seed) {
  std::mt19937_64 generator(seed);
  std::normal_distribution<float> normal(0.0F, 4.0F);
  std::vector<float> logits(count);
  for (float& logit : logits) logit = normal(generator);
  return logits;
}

SampledToken Sample(Sampler* sampler, std::span<const float> logits) {
  LogitsSummary summary;
  Summarise(logits, &summary);
  return sampler->Sample(logits, summary);
}

TEST(Sampler, GreedyTakesTheFirstOfTheLargest) {
  Sampler sampler({});
  EXPECT_EQ(Sample(&sampler, std::vector<float>{1, 3, 3, 2}).token, 1);
}

TEST(Sampler, FrequenciesFollowTheDistribution) {
  const std::vector<float> logits = {0.0F, 1.0F, 2.0F};
  Sampler sampler({.temperature = 2.0, .seed = 5});
  std::map<TokenId, int> counts;
  constexpr int kDraws = 60000;
  for (int i = 0; i < kDraws; ++i) ++counts[Sample(&sampler, logits).token];
  const double total = 1.0 + std::exp(0.5) + std::exp(1.0);
  for (TokenId token = 0; token < 3; ++token) {
    const double expected = std::exp(0.5 * token) / total;
    EXPECT_NEAR(counts[token] / static_cast<double>(kDraws), expected,
                5 * std::sqrt(expected / kDraws));
  }
}

TEST(Sampler, SameSeedSameTokens) {
  const auto logits = RandomLogits(1000, 1);
  Sampler a({.temperature = 1.0, .seed = 9});
  Sampler b({.temperature = 1.0, .seed = 9});
  Sampler c({.temperature = 1.0, .seed = 10});
  int different = 0;
  for (int i = 0; i < 50; ++i) {
    const TokenId token = Sample(&a, logits).token;
    EXPECT_EQ(token, Sample(&b, logits).token);
    if (token != Sample(&c, logits).token) ++different;
  }
  EXPECT_GT(different, 0);
}

TEST(Sampler, RepetitionPenaltyPushesSeenTokensDown) {
  Sampler sampler({.repetition_penalty = 2.0, .penalty_window = 2});
  sampler.See(0);
  EXPECT_EQ(Sample(&sampler, std::vector<float>{3.0F, 2.0F, -1.0F}).token, 1);  // 1.5, 2, -1
  EXPECT_EQ(Sample(&sampler, std::vector<float>{3.0F, 2.5F, 1.6F}).token, 2);   // 1.5, 1.25, 1.6
  EXPECT_EQ(Sample(&sampler, std::vector<float>{3.0F, 2.5F, 1.6F}).token,
            0);  // 0 has left the window
}

TEST(Sampler, PresenceAndFrequencyCountGeneratedTokensOnly) {
  Sampler sampler({.presence_penalty = 0.5, .frequency_penalty = 1.0});
  sampler.See(0);
  const std::vector<float> logits = {4.0F, 2.0F};
  EXPECT_EQ(Sample(&sampler, logits).token, 0);
  EXPECT_EQ(Sample(&sampler, logits).token, 0);  // 4 - 1.5
  EXPECT_EQ(Sample(&sampler, logits).token, 1);  // 4 - 2.5 < 2
}

TEST(Sampler, LogprobsAreOfTheModelsDistribution) {
  Sampler sampler({.temperature = 0.1, .repetition_penalty = 5.0, .logprobs = 2});
  const std::vector<float> logits = {std::log(0.2F), std::log(0.5F), std::log(0.3F)};
  const SampledToken sampled = Sample(&sampler, logits);
  ASSERT_EQ(sampled.top.size(), 2U);
  EXPECT_EQ(sampled.top[0].token, 1);
  EXPECT_NEAR(sampled.top[0].logprob, std::log(0.5), 1e-5);
  EXPECT_EQ(sampled.top[1].token, 2);
  EXPECT_NEAR(sampled.top[1].logprob, std::log(0.3), 1e-5);
  EXPECT_NEAR(sampled.logprob, logits[static_cast<std::size_t>(sampled.token)], 1e-5);
}

}  // namespace
}  // namespace carousel
