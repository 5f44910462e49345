// SPDX-License-Identifier: Apache-2.0
// The sampler against one that sorts and adds everything (testing/slow_sampler.h): the same tokens
// for the same numbers drawn, and the frequencies of the distribution after all filters.
#include <gtest/gtest.h>
#include <hwy/targets.h>

#include <algorithm>
#include <cmath>
#include <initializer_list>
#include <limits>
#include <map>
#include <optional>
#include <random>
#include <span>
#include <vector>

#include "engine/sampler.h"
#include "testing/random_cases.h"
#include "testing/slow_sampler.h"

namespace carousel {
namespace {

constexpr float kInfinity = std::numeric_limits<float>::infinity();
using Random = std::mt19937_64;

template <typename T>
T OneOf(Random* random, std::initializer_list<T> values) {
  return values.begin()[(*random)() % values.size()];
}

// Rows of the kinds that models give and do not give.
std::vector<float> RandomRow(Random* random, std::size_t count) {
  std::normal_distribution<float> normal(0.0F, OneOf(random, {0.1F, 1.0F, 4.0F, 30.0F}));
  std::vector<float> row(count);
  const int kind = static_cast<int>((*random)() % 8);
  for (float& logit : row) {
    logit = normal(*random);
    if (kind == 1) logit = std::round(logit);                         // ties, 0 and -0
    if (kind == 2 && (*random)() % 2 == 0) logit = -kInfinity;        // masked words
    if (kind == 3) logit = 7.0F;                                      // flat
    if (kind == 4) logit = std::clamp(logit, -34.0F, 34.0F) * 1e37F;  // as wide as floats are
    if (kind == 5) logit = std::clamp(logit, -0.5F, 0.5F);  // many as large as the largest
  }
  std::size_t any = (*random)() % count;
  if (kind == 6) row[any] += 60.0F;              // sure of itself
  if (kind == 7) row.assign(count, -kInfinity);  // one word alone
  if (kind == 2 || kind == 7) row[any] = 1.0F;
  return row;
}

SamplingParams RandomParams(Random* random, std::int64_t words) {
  return {.temperature = OneOf(random, {0.0, 0.01, 0.2, 0.7, 0.7, 1.0, 1.0, 1.7, 10.0, 100.0}),
          .top_k = OneOf<std::int64_t>(random, {0, 0, 0, 1, 2, 7, 40, words - 1, words, words + 9}),
          .top_p = OneOf(random, {1.0, 1.0, 0.95, 0.9, 0.5, 0.999999, 1e-9}),
          .min_p = OneOf(random, {0.0, 0.0, 0.0, 0.05, 0.3, 1e-12, 1.0}),
          .repetition_penalty = OneOf(random, {1.0, 1.0, 1.1, 1.3, 0.7, 1000.0, 0.001}),
          .presence_penalty = OneOf(random, {0.0, 0.0, 0.5, -1.5}),
          .frequency_penalty = OneOf(random, {0.0, 0.0, 0.3, -0.2}),
          .penalty_window = OneOf<std::int64_t>(random, {1, 4, 256}),
          .seed = (*random)()};
}

// A sampler and its judge side by side.
struct Pair {
  explicit Pair(const SamplingParams& params) : fast(params), slow(params) {}

  void Exempt(TokenId token) {
    fast.Exempt(token);
    slow.Exempt(token);
  }
  void See(TokenId token) {
    fast.See(token);
    slow.See(token);
  }
  SampledToken Sample(std::span<const float> row, std::optional<TokenId> forced = {}) {
    Summarise(row, &summary);
    return fast.Sample(row, summary, forced);
  }

  Sampler fast;
  SlowSampler slow;
  LogitsSummary summary;
};

TEST(ExactSampling, DrawsTheSameTokensForTheSameNumbers) {
  Random random(1);
  const auto targets = hwy::SupportedAndGeneratedTargets();
  for (int i = 0; i < RandomCases(2500); ++i) {
    hwy::SetSupportedTargetsForTest(targets[static_cast<std::size_t>(i) % targets.size()]);
    const auto words = OneOf<std::int64_t>(&random, {1, 2, 3, 5, 17, 60, 60, 300, 1024, 2500});
    const SamplingParams params = RandomParams(&random, words);
    Pair pair(params);
    const auto any_word = [&] {
      return static_cast<TokenId>(random() % static_cast<std::uint64_t>(words));
    };
    for (std::uint64_t exempt = random() % 3; exempt > 0; --exempt) pair.Exempt(any_word());
    for (std::uint64_t seen = random() % 12; seen > 0; --seen) pair.See(any_word());
    for (int step = 0; step < 4; ++step) {
      const std::vector<float> row = RandomRow(&random, static_cast<std::size_t>(words));
      ASSERT_EQ(pair.Sample(row).token, pair.slow.Sample(row))
          << "case " << i << ", step " << step << ": " << words << " words, temperature "
          << params.temperature << ", top_k " << params.top_k << ", top_p " << params.top_p
          << ", min_p " << params.min_p << ", repetition " << params.repetition_penalty;
    }
  }
  hwy::SetSupportedTargetsForTest(0);
}

TEST(ExactSampling, DrawsTheSameTokensFromLargeVocabularies) {
  Random random(2);
  std::normal_distribution<float> normal(0.0F, 3.5F);
  std::vector<float> row(262'144);
  for (float& logit : row) logit = normal(random);
  const SamplingParams cases[] = {
      {.temperature = 0.7, .top_p = 0.95, .repetition_penalty = 1.1, .penalty_window = 256},
      {.temperature = 1.0},
      {.temperature = 1.3, .top_k = 3000, .top_p = 0.999},
      {.temperature = 100.0, .top_p = 0.9}};
  for (const SamplingParams& params : cases) {
    Pair pair(params);
    for (int i = 0; i < 256; ++i) pair.See(static_cast<TokenId>(random() % row.size()));
    const std::vector<WeightedWord> words = pair.slow.Distribution(row);
    // What is drawn is penalised in turn; without penalties one distribution serves for more draws.
    for (int draw = 0; draw < (params.repetition_penalty == 1.0 ? 3 : 1); ++draw)
      EXPECT_EQ(pair.Sample(row).token, SlowSampler::WordAt(words, pair.slow.Uniform()));
  }
}

// Pearson's statistic of `draws`, less what it is on average, in standard deviations. Words that
// are expected fewer than 10 times are counted together.
double Surprise(const std::map<TokenId, int>& counts, const std::vector<WeightedWord>& words,
                int draws) {
  const double total = SlowSampler::Total(words);
  double statistic = 0.0;
  double bins = 0.0;
  double rare_expected = 0.0;
  double rare_count = 0.0;
  for (const WeightedWord& word : words) {
    const double expected = draws * word.weight / total;
    const auto found = counts.find(word.token);
    const double count = found == counts.end() ? 0.0 : found->second;
    if (expected < 10.0) {
      rare_expected += expected;
      rare_count += count;
      continue;
    }
    statistic += (count - expected) * (count - expected) / expected;
    bins += 1.0;
  }
  if (rare_expected > 1.0) {
    statistic += (rare_count - rare_expected) * (rare_count - rare_expected) / rare_expected;
    bins += 1.0;
  }
  return bins < 2.0 ? 0.0 : (statistic - (bins - 1.0)) / std::sqrt(2.0 * (bins - 1.0));
}

TEST(ExactSampling, FrequenciesAreOfTheDistributionAfterAllFilters) {
  Random random(3);
  constexpr int kDraws = 2000;
  int judged = 0;
  for (int i = 0; i < RandomCases(60); ++i) {
    const auto count = OneOf<std::int64_t>(&random, {3, 12, 40});
    SamplingParams params = RandomParams(&random, count);
    params.temperature = OneOf(&random, {0.7, 1.0, 1.7, 10.0});  // that leave a choice
    params.top_p = std::max(params.top_p, 0.5);
    const std::vector<float> row = RandomRow(&random, static_cast<std::size_t>(count));
    std::vector<TokenId> seen;
    for (std::uint64_t j = random() % 6; j > 0; --j)
      seen.push_back(static_cast<TokenId>(random() % static_cast<std::uint64_t>(count)));
    std::map<TokenId, int> counts;
    std::vector<WeightedWord> words;
    for (int draw = 0; draw < kDraws; ++draw) {
      ++params.seed;
      Pair pair(params);
      for (const TokenId token : seen) pair.See(token);
      if (draw == 0) words = pair.slow.Distribution(row);
      ++counts[pair.Sample(row).token];
    }
    int drawn = 0;
    for (const WeightedWord& word : words) drawn += counts[word.token];
    EXPECT_EQ(drawn, kDraws) << "case " << i << ": a word that the filters drop was drawn";
    EXPECT_LT(Surprise(counts, words, kDraws), 5.0) << "case " << i;
    if (words.size() > 1) ++judged;
  }
  EXPECT_GT(judged, RandomCases(60) / 3);
}

// A share of top-p that ends within a sum's rounding of a word: single precision may not decide.
TEST(ExactSampling, WhatIsTooCloseIsDecidedInDoublePrecision) {
  std::vector<float> row(20'000, 2.0F);
  for (std::size_t i = 0; i < 20; ++i) row[1000 * i + 77] = 9.0F - 0.01F * static_cast<float>(i);
  const std::vector<WeightedWord> words = SlowSampler({.temperature = 1.0}).Distribution(row);
  const double total = SlowSampler::Total(words);
  double head = 0.0;
  for (std::size_t i = 0; i < 10; ++i) head += words[i].weight;
  for (const auto target : hwy::SupportedAndGeneratedTargets()) {
    SCOPED_TRACE(hwy::TargetName(target));
    hwy::SetSupportedTargetsForTest(target);
    for (const double off : {-1e-8, 1e-8}) {
      const std::size_t kept = off < 0 ? 10 : 11;
      const std::vector<WeightedWord> allowed(words.begin(),
                                              words.begin() + static_cast<std::ptrdiff_t>(kept));
      Pair pair({.temperature = 1.0, .top_p = head / total * (1.0 + off), .seed = 4});
      for (int draw = 0; draw < 20; ++draw)
        ASSERT_EQ(pair.Sample(row).token, SlowSampler::WordAt(allowed, pair.slow.Uniform())) << off;
    }
  }
  hwy::SetSupportedTargetsForTest(0);
}

TEST(ExactSampling, ReportsTheLikeliestOfTheModelsOwnDistribution) {
  Random random(5);
  for (int i = 0; i < RandomCases(200); ++i) {
    const auto count = OneOf<std::int64_t>(&random, {1, 3, 50, 1500});
    SamplingParams params = RandomParams(&random, count);
    params.logprobs = 20;
    const std::vector<float> row = RandomRow(&random, static_cast<std::size_t>(count));
    const auto expected = SlowSampler({.temperature = 1.0, .top_k = 20}).Distribution(row);
    Pair pair(params);
    const SampledToken sampled =
        pair.Sample(row, random() % 2 == 0 ? std::optional<TokenId>(0) : std::nullopt);
    for (std::size_t rank = 0; rank < std::min(expected.size(), sampled.top.size()); ++rank) {
      EXPECT_EQ(sampled.top[rank].token, expected[rank].token);
      const auto logit = static_cast<double>(row[static_cast<std::size_t>(expected[rank].token)]);
      EXPECT_EQ(sampled.top[rank].logprob, static_cast<float>(logit - pair.summary.log_sum_exp));
    }
    std::int64_t possible = 0;
    for (const float logit : row) possible += logit == -kInfinity ? 0 : 1;
    EXPECT_EQ(std::ssize(sampled.top), std::min<std::int64_t>(20, possible));
  }
}

}  // namespace
}  // namespace carousel
