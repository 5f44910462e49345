// SPDX-License-Identifier: Apache-2.0
// The passes over a row of logits, on every instruction set that this machine has.
#include "engine/logits.h"

#include <gtest/gtest.h>
#include <hwy/targets.h>

#include <algorithm>
#include <cmath>
#include <functional>
#include <limits>
#include <random>
#include <string>
#include <vector>

namespace carousel {
namespace {

constexpr float kInfinity = std::numeric_limits<float>::infinity();
constexpr float kNaN = std::numeric_limits<float>::quiet_NaN();

std::vector<float> RandomLogits(std::size_t count, std::uint64_t seed) {
  std::mt19937_64 generator(seed);
  std::normal_distribution<float> normal(0.0F, 4.0F);
  std::vector<float> logits(count);
  for (float& logit : logits) logit = normal(generator);
  return logits;
}

void OnEveryTarget(const std::function<void()>& test) {
  for (const auto target : hwy::SupportedAndGeneratedTargets()) {
    SCOPED_TRACE(hwy::TargetName(target));
    hwy::SetSupportedTargetsForTest(target);
    test();
  }
  hwy::SetSupportedTargetsForTest(0);
}

double SumOfExponentials(const std::vector<float>& logits, double largest, double temperature,
                         float below) {
  double sum = 0.0;
  for (const float logit : logits)
    if (logit < below) sum += std::exp((static_cast<double>(logit) - largest) / temperature);
  return sum;
}

TEST(Summarise, EqualsTheDefinition) {
  OnEveryTarget([] {
    LogitsSummary summary;
    for (const std::size_t count : {1U, 3U, 16U, 17U, 1000U, 1024U, 1025U, 3000U, 49152U}) {
      SCOPED_TRACE(count);
      auto logits = RandomLogits(count, count);
      const auto likeliest = static_cast<TokenId>(count / 2);
      logits[count / 2] += 300.0F;            // no overflow
      logits[count - 1] = logits[count / 2];  // the first of the largest
      if (count > 100) logits[3] = -kInfinity;
      const auto largest = static_cast<double>(logits[count / 2]);
      const double expected =
          largest + std::log(SumOfExponentials(logits, largest, 1.0, kInfinity));
      Summarise(logits, &summary);
      EXPECT_NEAR(summary.log_sum_exp, expected, 2e-6);
      EXPECT_EQ(LogSumExp(logits), summary.log_sum_exp);
      EXPECT_EQ(summary.likeliest, likeliest);
      EXPECT_EQ(ArgMax(logits), likeliest);
      EXPECT_EQ(static_cast<double>(summary.largest), largest);
      ASSERT_EQ(summary.block_largest.size(), (count + kLogitsBlock - 1) / kLogitsBlock);
      for (std::size_t block = 0; block < summary.block_largest.size(); ++block) {
        const auto begin = logits.begin() + static_cast<std::ptrdiff_t>(block * kLogitsBlock);
        const auto end = logits.end() - begin > kLogitsBlock ? begin + kLogitsBlock : logits.end();
        EXPECT_EQ(summary.block_largest[block], *std::max_element(begin, end));
      }
    }
  });
}

// The largest so far grows from block to block, and far below it weighs nothing.
TEST(Summarise, TakesRisingAndFallingRows) {
  OnEveryTarget([] {
    for (const double slope : {0.01, -0.01}) {
      std::vector<float> logits(20'000);
      for (std::size_t i = 0; i < logits.size(); ++i)
        logits[i] = static_cast<float>(slope * static_cast<double>(i));
      const double largest = slope > 0 ? static_cast<double>(logits.back()) : 0.0;
      EXPECT_NEAR(LogSumExp(logits),
                  largest + std::log(SumOfExponentials(logits, largest, 1.0, kInfinity)), 2e-6);
    }
  });
}

TEST(Summarise, MaskedWordsCountNothing) {
  OnEveryTarget([] {
    std::vector<float> logits(3000, -kInfinity);
    logits[2007] = 2.0F;
    LogitsSummary summary;
    Summarise(logits, &summary);
    EXPECT_TRUE(summary.usable());
    EXPECT_NEAR(summary.log_sum_exp, 2.0, 1e-6);
    EXPECT_EQ(summary.likeliest, 2007);
  });
}

TEST(Summarise, FindsWhatIsNoNumberWhereverItIs) {
  OnEveryTarget([] {
    LogitsSummary summary;
    for (const std::size_t count : {1U, 31U, 1024U, 1061U}) {
      for (std::size_t at = 0; at<count; at += count> 100 ? 13 : 1) {
        for (const float bad : {kNaN, -kNaN, kInfinity}) {
          std::vector<float> logits(count, 1.0F);
          logits[at] = bad;
          Summarise(logits, &summary);
          ASSERT_FALSE(summary.usable()) << bad << " at " << at << " of " << count;
          ASSERT_TRUE(std::isnan(LogSumExp(logits)));
        }
      }
    }
    Summarise(std::vector<float>(1061, -kInfinity), &summary);
    EXPECT_FALSE(summary.usable());
    Summarise(std::vector<float>(1061, -std::numeric_limits<float>::max()), &summary);
    EXPECT_TRUE(summary.usable());
  });
}

TEST(SumExpBelow, EqualsTheDefinition) {
  OnEveryTarget([] {
    for (const std::size_t count : {1U, 19U, 1024U, 50'000U}) {
      const auto logits = RandomLogits(count, count);
      const float largest = Largest(logits);
      for (const double temperature : {0.01, 0.3, 1.0, 1.7, 100.0}) {
        for (const float below : {largest, largest - 5.0F, largest - 20.0F, kInfinity}) {
          const double exact =
              SumOfExponentials(logits, static_cast<double>(largest), temperature, below);
          EXPECT_NEAR(SumExpBelow(logits, largest, temperature, below), exact,
                      kSumExpError * exact + 1e-18 * static_cast<double>(count))
              << count << " words at " << temperature << " below " << below;
        }
      }
    }
  });
}

// Where the sum is of one size it errs most, as all errors have one sign.
TEST(SumExpBelow, KeepsItsPromiseForEqualLogits) {
  OnEveryTarget([] {
    for (int i = 0; i < 300; ++i) {
      const float logit = 17.0F - 0.1F * static_cast<float>(i);
      const double exact = 5000 * std::exp((static_cast<double>(logit) - 17.3F) / 0.9);
      ASSERT_NEAR(SumExpBelow(std::vector<float>(5000, logit), 17.3F, 0.9, 17.3F), exact,
                  kSumExpError * exact + 1e-18 * 5000);
    }
  });
}

TEST(SumExpBelow, IsZeroWhereNothingIsLeft) {
  OnEveryTarget([] {
    const std::vector<float> logits = {3.0F, 3.0F, 2.0F, -kInfinity, -3e38F};
    EXPECT_EQ(SumExpBelow(logits, 3.0F, 1.0, 2.0F), 0.0);
    EXPECT_EQ(SumExpBelow(logits, 3.0F, 1e-300, 3.0F), 0.0);
    EXPECT_EQ(SumExpBelow(logits, 3e38F, 1.0, 3e38F), 0.0);
  });
}

TEST(FindLogits, FindsWhatIsBetween) {
  OnEveryTarget([] {
    std::vector<std::int32_t> found(kLogitsBlock);
    for (const std::size_t count : {1U, 7U, 64U, 1000U, 1024U}) {
      auto logits = RandomLogits(count, 3 * count);
      logits[count / 2] = -kInfinity;
      const float least = logits[0];
      for (const float below : {kInfinity, least + 3.0F, least}) {
        std::vector<std::int32_t> expected;
        for (std::size_t i = 0; i < count; ++i)
          if (logits[i] >= least && logits[i] < below)
            expected.push_back(static_cast<std::int32_t>(i));
        const std::int64_t number = FindLogits(logits, least, below, found.data());
        EXPECT_EQ(std::vector<std::int32_t>(found.begin(), found.begin() + number), expected);
      }
    }
  });
}

}  // namespace
}  // namespace carousel
