// SPDX-License-Identifier: Apache-2.0
#include "cli/segment_meter.h"

#include <gtest/gtest.h>
#include <rapidcheck/gtest.h>

#include <cmath>

namespace carousel {
namespace {

TEST(SegmentMeter, TilesTheStream) {
  SegmentMeter meter(4);
  EXPECT_TRUE(meter.AddStep(3, std::vector<double>{1, 2}, 3.0).empty());
  const auto complete = meter.AddStep(6, std::vector<double>{3, 4, 4, 4, 4, 5}, 12.0);
  ASSERT_EQ(complete.size(), 2U);
  EXPECT_EQ(complete[0].tokens_begin, 0);
  EXPECT_EQ(complete[0].tokens_end, 4);
  EXPECT_EQ(complete[0].predicted_tokens, 3);  // nothing predicts the first token
  EXPECT_DOUBLE_EQ(complete[0].nll(), 2.0);
  EXPECT_DOUBLE_EQ(complete[0].perplexity(), std::exp(2.0));
  EXPECT_DOUBLE_EQ(complete[0].tokens_per_second(), 4 / 5.0);
  EXPECT_EQ(complete[1].tokens_begin, 4);
  EXPECT_EQ(complete[1].tokens_end, 8);
  EXPECT_DOUBLE_EQ(complete[1].nll(), 4.0);
  ASSERT_TRUE(meter.unfinished().has_value());
  EXPECT_EQ(meter.unfinished()->tokens(), 1);
  EXPECT_EQ(meter.total().tokens(), 9);
  EXPECT_EQ(meter.total().predicted_tokens, 8);
  EXPECT_DOUBLE_EQ(meter.total().nll(), 27.0 / 8);
}

TEST(SegmentMeter, WithoutPredictionsThereIsNoMean) {
  SegmentMeter meter(4);
  EXPECT_TRUE(std::isnan(meter.total().nll()));
  EXPECT_FALSE(meter.unfinished().has_value());
  EXPECT_TRUE(meter.AddStep(0, {}, 0.0).empty());
}

RC_GTEST_PROP(SegmentMeter, StepsDoNotMatter, ()) {
  const auto steps = *rc::gen::nonEmpty(
      rc::gen::container<std::vector<std::int64_t>>(rc::gen::inRange<std::int64_t>(1, 20)));
  const auto segment_tokens = *rc::gen::inRange<std::int64_t>(1, 30);
  SegmentMeter meter(segment_tokens);
  std::vector<Segment> segments;
  std::int64_t tokens = 0;
  for (const std::int64_t step : steps) {
    std::vector<double> nll;
    for (std::int64_t i = tokens; i < tokens + step; ++i) {
      if (i > 0) nll.push_back(static_cast<double>(i));
    }
    for (const Segment& segment : meter.AddStep(step, nll, 1.0)) segments.push_back(segment);
    tokens += step;
  }
  if (const auto rest = meter.unfinished()) segments.push_back(*rest);
  std::int64_t begin = 0;
  double sum = 0;
  for (const Segment& segment : segments) {
    RC_ASSERT(segment.tokens_begin == begin);
    double expected = 0;
    for (std::int64_t i = segment.tokens_begin; i < segment.tokens_end; ++i)
      expected += static_cast<double>(i);
    RC_ASSERT(segment.nll_sum == expected);
    begin = segment.tokens_end;
    sum += expected;
  }
  RC_ASSERT(begin == tokens);
  RC_ASSERT(meter.total().nll_sum == sum);
  RC_ASSERT(meter.total().predicted_tokens == tokens - 1);
}

}  // namespace
}  // namespace carousel
