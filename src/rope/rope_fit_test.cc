// SPDX-License-Identifier: Apache-2.0
#include "rope/rope_fit.h"

#include <gmock/gmock.h>
#include <gtest/gtest.h>

#include <cmath>
#include <numbers>
#include <vector>

namespace carousel {
namespace {

// To 8 bits of mantissa, as bf16 does.
double Coarse(double value) {
  int exponent = 0;
  const double mantissa = std::frexp(value, &exponent);
  return std::ldexp(std::nearbyint(std::ldexp(mantissa, 8)), exponent - 8);
}

RotationSamples EmptySamples(std::int64_t head_dim) {
  return {.head_dim = head_dim,
          .positions = {0, 1, 2, 4, 8, 16, 32, 64, 128, 255, 512},
          .trained_window = 256,
          .values = {},
          .noise = 0.0};
}

TEST(FitRotation, SlowPairsThatRoundingMovesInStepsAreAsNoisyAsTheOthers) {
  // One sample, whose slow pair has two equal components: they step together, so that its phase
  // jumps and its length does not.
  RotationSamples samples = EmptySamples(6);
  const std::vector<double> frequencies = {1.0, 0.1, 4e-5};
  const std::vector<double> before = {1.3, -0.7, 1.375, 0.4, 1.1, 1.375};
  for (const std::int64_t position : samples.positions) {
    std::vector<double> after(6);
    for (std::size_t i = 0; i < 3; ++i) {
      const double angle = static_cast<double>(position) * frequencies[i];
      after[i] = before[i] * std::cos(angle) - before[3 + i] * std::sin(angle);
      after[3 + i] = before[i] * std::sin(angle) + before[3 + i] * std::cos(angle);
    }
    for (const double value : after) samples.values.push_back(static_cast<float>(Coarse(value)));
  }
  const RotationFit fit = FitRotation(samples);
  EXPECT_EQ(fit.kind, RotationKind::kRotation) << fit.reason;
  ASSERT_EQ(fit.rope.rotated_dims, 6);
  EXPECT_NEAR(fit.rope.frequencies[2], 4e-5, 0x1p-7 / 255.0);
}

TEST(FitPhaseLine, FollowsPhasesThroughManyTurns) {
  const std::vector<std::int64_t> positions = {0, 1, 2, 4, 8, 16, 32, 64, 128};
  for (const double frequency : {3.0, 1.0, -0.7, 0.01, 0.0}) {
    std::vector<double> phases;
    for (const std::int64_t position : positions) {
      phases.push_back(
          std::remainder(frequency * static_cast<double>(position), 2.0 * std::numbers::pi));
    }
    const PhaseLine line = FitPhaseLine(positions, phases, 1e-7);
    EXPECT_FALSE(line.broken.has_value());
    EXPECT_NEAR(line.frequency, frequency, 1e-12);
    EXPECT_LT(line.largest_residual, 1e-10);
  }
}

TEST(FitPhaseLine, SaysWhereTheLineBreaks) {
  const std::vector<std::int64_t> positions = {0, 1, 2, 4, 8};
  const std::vector<double> phases = {0.0, 0.1, 0.2, 0.4, 0.72};
  const PhaseLine line = FitPhaseLine(positions, phases, 1e-7);
  ASSERT_TRUE(line.broken.has_value());
  EXPECT_EQ(line.broken->position_index, 4U);
  EXPECT_NEAR(line.broken->frequency, 0.1, 1e-9);
  EXPECT_NEAR(line.broken->implied, 0.09, 1e-9);
  // What is wide of the line by less than the noise is on it.
  EXPECT_FALSE(FitPhaseLine(positions, phases, 0.05).broken.has_value());
}

TEST(FitPhaseLine, APhaseThatIsNotANumberBreaksIt) {
  const std::vector<std::int64_t> positions = {0, 1, 2};
  const std::vector<double> phases = {0.0, 0.1, std::nan("")};
  EXPECT_TRUE(FitPhaseLine(positions, phases, 1e-7).broken.has_value());
}

TEST(FitRotationDeathTest, ChecksTheShapeOfSamples) {
  RotationSamples samples = EmptySamples(4);
  samples.values.assign(11 * 4 + 1, 1.0F);
  EXPECT_DEATH(FitRotation(samples), "values.size");
  samples.values.assign(11 * 4, 1.0F);
  samples.positions[1] = 2;
  EXPECT_DEATH(FitRotation(samples), "positions");
}

}  // namespace
}  // namespace carousel
