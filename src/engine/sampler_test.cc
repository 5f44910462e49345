// SPDX-License-Identifier: Apache-2.0
#include "engine/sampler.h"

#include <gtest/gtest.h>
#include <hwy/targets.h>
#include <rapidcheck/gtest.h>

#include <algorithm>
#include <cmath>
#include <limits>
#include <map>
#include <random>

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

TEST(LogSumExp, EqualsTheDefinitionOnEveryTarget) {
  for (const auto target : hwy::SupportedAndGeneratedTargets()) {
    hwy::SetSupportedTargetsForTest(target);
    for (const std::size_t count : {1U, 3U, 16U, 17U, 1000U, 49152U}) {
      auto logits = RandomLogits(count, count);
      logits[count / 2] += 300.0F;  // no overflow
      double largest = -1e300;
      for (const float logit : logits) largest = std::max(largest, static_cast<double>(logit));
      double sum = 0.0;
      for (const float logit : logits) sum += std::exp(static_cast<double>(logit) - largest);
      EXPECT_NEAR(LogSumExp(logits), largest + std::log(sum), 1e-6 * largest);
      EXPECT_EQ(ArgMax(logits), static_cast<TokenId>(count / 2));
    }
  }
  hwy::SetSupportedTargetsForTest(0);
}

TEST(LogSumExp, HiddenTokensCountNothing) {
  std::vector<float> logits(20, -std::numeric_limits<float>::infinity());
  logits[7] = 2.0F;
  EXPECT_NEAR(LogSumExp(logits), 2.0, 1e-6);
}

TEST(Sampler, GreedyTakesTheFirstOfTheLargest) {
  Sampler sampler({}, 4);
  EXPECT_EQ(sampler.Sample(std::vector<float>{1, 3, 3, 2}).token, 1);
}

TEST(Sampler, FrequenciesFollowTheDistribution) {
  const std::vector<float> logits = {0.0F, 1.0F, 2.0F};
  Sampler sampler({.temperature = 2.0, .seed = 5}, 3);
  std::map<TokenId, int> counts;
  constexpr int kDraws = 60000;
  for (int i = 0; i < kDraws; ++i) ++counts[sampler.Sample(logits).token];
  const double total = 1.0 + std::exp(0.5) + std::exp(1.0);
  for (TokenId token = 0; token < 3; ++token) {
    const double expected = std::exp(0.5 * token) / total;
    EXPECT_NEAR(counts[token] / static_cast<double>(kDraws), expected,
                5 * std::sqrt(expected / kDraws));
  }
}

// Each filter alone allows exactly the tokens that its definition allows.
RC_GTEST_PROP(Sampler, FiltersKeepWhatTheyShould, ()) {
  const auto seed = *rc::gen::arbitrary<std::uint64_t>();
  const auto logits = RandomLogits(20, seed);
  SamplingParams params{.temperature = 1.5, .seed = seed};
  const int filter = *rc::gen::inRange(0, 3);
  if (filter == 0) params.top_k = *rc::gen::inRange(1, 25);
  if (filter == 1) params.top_p = *rc::gen::inRange(1, 101) / 100.0;
  if (filter == 2) params.min_p = *rc::gen::inRange(0, 100) / 100.0;
  std::vector<std::pair<double, TokenId>> order;
  double total = 0.0;
  for (std::size_t i = 0; i < logits.size(); ++i) {
    const double weight = std::exp(static_cast<double>(logits[i]) / params.temperature);
    order.emplace_back(-weight, static_cast<TokenId>(i));
    total += weight;
  }
  std::sort(order.begin(), order.end());
  std::map<TokenId, bool> allowed;
  double before = 0.0;
  for (std::size_t rank = 0; rank < order.size(); ++rank) {
    const double weight = -order[rank].first;
    const bool by_k = params.top_k == 0 || static_cast<std::int64_t>(rank) < params.top_k;
    const bool by_p = before < params.top_p * total + 1e-9;
    const bool by_min = weight >= params.min_p * -order[0].first - 1e-9;
    allowed[order[rank].second] = rank == 0 || (by_k && by_p && by_min);
    before += weight;
  }
  Sampler sampler(params, 20);
  for (int i = 0; i < 200; ++i) RC_ASSERT(allowed[sampler.Sample(logits).token]);
}

TEST(Sampler, SameSeedSameTokens) {
  const auto logits = RandomLogits(1000, 1);
  Sampler a({.temperature = 1.0, .seed = 9}, 1000);
  Sampler b({.temperature = 1.0, .seed = 9}, 1000);
  Sampler c({.temperature = 1.0, .seed = 10}, 1000);
  int different = 0;
  for (int i = 0; i < 50; ++i) {
    const TokenId token = a.Sample(logits).token;
    EXPECT_EQ(token, b.Sample(logits).token);
    if (token != c.Sample(logits).token) ++different;
  }
  EXPECT_GT(different, 0);
}

TEST(Sampler, RepetitionPenaltyPushesSeenTokensDown) {
  Sampler sampler({.repetition_penalty = 2.0, .penalty_window = 2}, 3);
  sampler.See(0);
  EXPECT_EQ(sampler.Sample(std::vector<float>{3.0F, 2.0F, -1.0F}).token, 1);  // 1.5, 2, -1
  EXPECT_EQ(sampler.Sample(std::vector<float>{3.0F, 2.5F, 1.6F}).token, 2);   // 1.5, 1.25, 1.6
  EXPECT_EQ(sampler.Sample(std::vector<float>{3.0F, 2.5F, 1.6F}).token,
            0);  // 0 has left the window
}

TEST(Sampler, PresenceAndFrequencyCountGeneratedTokensOnly) {
  Sampler sampler({.presence_penalty = 0.5, .frequency_penalty = 1.0}, 2);
  sampler.See(0);
  const std::vector<float> logits = {4.0F, 2.0F};
  EXPECT_EQ(sampler.Sample(logits).token, 0);
  EXPECT_EQ(sampler.Sample(logits).token, 0);  // 4 - 1.5
  EXPECT_EQ(sampler.Sample(logits).token, 1);  // 4 - 2.5 < 2
}

TEST(Sampler, LogprobsAreOfTheModelsDistribution) {
  Sampler sampler({.temperature = 0.1, .repetition_penalty = 5.0, .logprobs = 2}, 3);
  const std::vector<float> logits = {std::log(0.2F), std::log(0.5F), std::log(0.3F)};
  const SampledToken sampled = sampler.Sample(logits);
  ASSERT_EQ(sampled.top.size(), 2U);
  EXPECT_EQ(sampled.top[0].token, 1);
  EXPECT_NEAR(sampled.top[0].logprob, std::log(0.5), 1e-5);
  EXPECT_EQ(sampled.top[1].token, 2);
  EXPECT_NEAR(sampled.top[1].logprob, std::log(0.3), 1e-5);
  EXPECT_NEAR(sampled.logprob, logits[static_cast<std::size_t>(sampled.token)], 1e-5);
}

TEST(ValidateSampling, NamesTheField) {
  const std::pair<std::string, SamplingParams> cases[] = {
      {"temperature", {.temperature = -1}},
      {"temperature", {.temperature = std::nan("")}},
      {"top_k", {.top_k = -1}},
      {"top_p", {.top_p = 0.0}},
      {"top_p", {.top_p = 1.1}},
      {"min_p", {.min_p = -0.1}},
      {"repetition_penalty", {.repetition_penalty = 0.0}},
      {"presence_penalty", {.presence_penalty = 3.0}},
      {"frequency_penalty", {.frequency_penalty = -3.0}},
      {"penalty_window", {.penalty_window = 0}},
      {"logprobs", {.logprobs = 21}},
  };
  for (const auto& [field, params] : cases) {
    try {
      Validate(params);
      ADD_FAILURE() << field << " was accepted";
    } catch (const Error& error) {
      EXPECT_EQ(error.field(), field);
    }
  }
  EXPECT_NO_THROW(Validate(SamplingParams{}));
}

}  // namespace
}  // namespace carousel
