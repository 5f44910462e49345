// SPDX-License-Identifier: Apache-2.0
#include "rope/rotation_table.h"

#include <gtest/gtest.h>
#include <rapidcheck/gtest.h>

#include <cmath>
#include <cstddef>

namespace carousel {
namespace {

constexpr double kHalfUlp = 0x1p-25;  // of a float in [0.5, 1)

LayerRope PlainRope(double theta, std::int64_t rotated_dims) {
  return {.rotated_dims = rotated_dims, .frequencies = PlainFrequencies(theta, rotated_dims)};
}

TEST(PlainFrequencies, AreAGeometricSeriesFromOneTowardsOneOverTheta) {
  const std::vector<double> frequencies = PlainFrequencies(10000.0, 8);
  ASSERT_EQ(frequencies.size(), 4U);
  EXPECT_DOUBLE_EQ(frequencies[0], 1.0);
  EXPECT_DOUBLE_EQ(frequencies[1], 0.1);
  EXPECT_DOUBLE_EQ(frequencies[2], 0.01);
  EXPECT_DOUBLE_EQ(frequencies[3], 0.001);
  EXPECT_TRUE(PlainFrequencies(10000.0, 0).empty());
}

TEST(PlainFrequenciesDeathTest, RefusesWhatIsNoRotation) {
  EXPECT_DEATH(PlainFrequencies(10000.0, 7), "rotated_dims % 2");
  EXPECT_DEATH(PlainFrequencies(0.0, 8), "theta");
}

RC_GTEST_PROP(RotationTable, RowIsDoubleCosAndSinRoundedToFloat, ()) {
  const std::int64_t pairs = *rc::gen::inRange<std::int64_t>(1, 40);
  const double theta = *rc::gen::element(10.0, 1e4, 1e5, 5e5, 1e6);
  const std::int64_t block_size = *rc::gen::element<std::int64_t>(8, 16, 32, 256);
  const std::int64_t multiple = *rc::gen::inRange<std::int64_t>(-2000, 2001);
  RotationTable table(PlainRope(theta, 2 * pairs), block_size);
  table.Extend(std::abs(multiple));
  const RotationRow row = table.row(multiple);
  RC_ASSERT(static_cast<std::int64_t>(row.cos.size()) == pairs);
  RC_ASSERT(static_cast<std::int64_t>(row.sin.size()) == pairs);
  for (std::size_t i = 0; i < row.cos.size(); ++i) {
    const double angle = static_cast<double>(multiple * block_size) * table.rope().frequencies[i];
    RC_ASSERT(std::abs(row.cos[i] - std::cos(angle)) <= kHalfUlp);
    RC_ASSERT(std::abs(row.sin[i] - std::sin(angle)) <= kHalfUlp);
  }
}

RC_GTEST_PROP(RotationTable, NegativeMultipleIsTheInverseToTheLastBit, ()) {
  const std::int64_t multiple = *rc::gen::inRange<std::int64_t>(0, 500);
  RotationTable table(PlainRope(1e4, 16), 32);
  table.Extend(500);
  const RotationRow forward = table.row(multiple);
  const RotationRow backward = table.row(-multiple);
  for (std::size_t i = 0; i < forward.cos.size(); ++i) {
    RC_ASSERT(forward.cos[i] == backward.cos[i]);
    RC_ASSERT(forward.sin[i] == -backward.sin[i]);
  }
}

TEST(RotationTable, ExtendingInStepsGivesTheRowsOfExtendingAtOnce) {
  RotationTable in_steps(PlainRope(1e5, 64), 32);
  for (const std::int64_t largest : {0, 1, 7, 3, 100}) in_steps.Extend(largest);
  RotationTable at_once(PlainRope(1e5, 64), 32);
  at_once.Extend(100);
  EXPECT_EQ(in_steps.largest_multiple(), 100);
  for (std::int64_t multiple = -100; multiple <= 100; ++multiple) {
    for (std::size_t i = 0; i < 32; ++i) {
      ASSERT_EQ(in_steps.row(multiple).cos[i], at_once.row(multiple).cos[i]);
      ASSERT_EQ(in_steps.row(multiple).sin[i], at_once.row(multiple).sin[i]);
    }
  }
}

TEST(RotationTableDeathTest, ChecksItsLimits) {
  RotationTable table(PlainRope(1e4, 8), 32);
  EXPECT_EQ(table.largest_multiple(), -1);
  EXPECT_DEATH(table.row(0), "largest_multiple_");
  table.Extend(4);
  EXPECT_DEATH(table.row(5), "5 vs 4");
  EXPECT_DEATH(table.row(-5), "-5 vs -4");
  EXPECT_DEATH(RotationTable(LayerRope{}, 32), "rotated_dims");
  EXPECT_DEATH(RotationTable(PlainRope(1e4, 8), 0), "block_size");
}

}  // namespace
}  // namespace carousel
