// SPDX-License-Identifier: Apache-2.0
#include "rope/declared_rope.h"

#include <gmock/gmock.h>
#include <gtest/gtest.h>

#include <string>
#include <vector>

#include "carousel/error.h"

namespace carousel {
namespace {

using ::testing::AllOf;
using ::testing::HasSubstr;

LayerRopeFinding Rotating(double theta, std::int64_t dims) {
  LayerRopeFinding finding;
  finding.verdict = RopeVerdict::kRotates;
  finding.rope = {.rotated_dims = dims, .frequencies = PlainFrequencies(theta, dims)};
  finding.fitted_theta = theta;
  finding.largest_residual = 1e-4;
  return finding;
}

LayerRopeFinding Still() {
  LayerRopeFinding finding;
  finding.verdict = RopeVerdict::kDoesNotRotate;
  return finding;
}

RopeProbeResult Found(std::vector<LayerRopeFinding> layers) {
  return {.verdict = RopeVerdict::kRotates, .reason = {}, .layers = std::move(layers)};
}

std::string Problem(const ModelSpec& spec, const RopeProbeResult& probe) {
  try {
    CheckDeclaredRope(spec, probe);
  } catch (const Error& error) {
    EXPECT_EQ(error.code(), ErrorCode::kModel);
    return error.what();
  }
  return "";
}

// A layer of theta 1e4 over 16 dimensions, and one that does not rotate.
ModelSpec Declaring() {
  ModelSpec spec;
  spec.trained_window = 8192;
  spec.declared_rope = {{PlainFrequencies(1e4, 16)}, {}};
  return spec;
}

TEST(CheckDeclaredRope, PassesWhatAgrees) {
  EXPECT_EQ(Problem({}, Found({Rotating(1e4, 16)})), "");
  EXPECT_EQ(Problem(Declaring(), Found({Rotating(1e4, 16), Still()})), "");
  EXPECT_EQ(Problem(Declaring(), Found({Rotating(1.0001e4, 16), Still()})), "");
}

TEST(CheckDeclaredRope, NamesBothValuesOfWhatDiffers) {
  EXPECT_THAT(Problem(Declaring(), Found({Rotating(2e4, 16), Still()})),
              AllOf(HasSubstr("layer 0, pair 1"), HasSubstr("measured 0.28998"),
                    HasSubstr("declare 0.31622")));
  EXPECT_THAT(Problem(Declaring(), Found({Rotating(1e4, 8), Still()})),
              AllOf(HasSubstr("measured 8 rotated dimensions"), HasSubstr("declare 16")));
  EXPECT_THAT(Problem(Declaring(), Found({Still(), Still()})),
              AllOf(HasSubstr("measured 0 rotated"), HasSubstr("declare 16")));
  EXPECT_THAT(Problem(Declaring(), Found({Rotating(1e4, 16), Rotating(1e4, 16)})),
              AllOf(HasSubstr("layer 1"), HasSubstr("declare 0")));
  EXPECT_THAT(Problem(Declaring(), Found({Rotating(1e4, 16)})),
              AllOf(HasSubstr("layers: measured 1"), HasSubstr("declare 2")));
}

TEST(CheckDeclaredRope, WhatTheProbeCannotSeeIsNoDisagreement) {
  // Slow pairs of noisy keys, and layers that it refused.
  LayerRopeFinding noisy = Rotating(1e4, 16);
  noisy.largest_residual = 0.02;
  noisy.rope.frequencies.back() += 2e-6;
  EXPECT_EQ(Problem(Declaring(), Found({noisy, Still()})), "");
  noisy.largest_residual = 1e-6;
  EXPECT_THAT(Problem(Declaring(), Found({noisy, Still()})), HasSubstr("pair 7"));
  EXPECT_EQ(Problem(Declaring(), Found({LayerRopeFinding{}, Still()})), "");
}

TEST(CheckDeclaredRope, AThetaAloneHasToBeSomeLayers) {
  ModelSpec spec;
  spec.declared_rope_theta = 1e6;
  EXPECT_EQ(Problem(spec, Found({Rotating(1e4, 16), Rotating(1e6, 16)})), "");
  EXPECT_EQ(Problem(spec, Found({Still()})), "");
  LayerRopeFinding scaled = Rotating(1e4, 16);
  scaled.fitted_theta = 0.0;
  EXPECT_EQ(Problem(spec, Found({scaled})), "");
  EXPECT_THAT(Problem(spec, Found({Rotating(1e4, 16), Still()})),
              AllOf(HasSubstr("theta: measured 10000"), HasSubstr("declare 1000000")));
}

// A finding whose frequencies are off by `relative`, each the other way than the one before.
LayerRopeFinding Measured(double theta, std::int64_t dims, double relative) {
  LayerRopeFinding finding = Rotating(theta, dims);
  finding.largest_residual = 1e-6;
  for (double& frequency : finding.rope.frequencies) {
    frequency *= 1.0 + relative;
    relative = -relative;
  }
  return finding;
}

TEST(SnapToDeclared, TakesWhatFilesSayWhereTheProbeCannotTellItApart) {
  const std::vector<double> declared = PlainFrequencies(1e4, 16);
  const RopeProbeResult probe = Found({Measured(1e4, 16, 1e-7), Still()});
  ASSERT_NE(probe.spec().layers[0].frequencies, declared);
  const RopeSpec snapped = SnapToDeclared(Declaring(), probe);
  EXPECT_EQ(snapped.layers[0].frequencies, declared);
  EXPECT_FALSE(snapped.layers[1].rotates());
}

TEST(SnapToDeclared, TakesThetaWhereTheFilesSayNoMore) {
  const ModelSpec spec{.trained_window = 8192, .declared_rope_theta = 1e4};
  EXPECT_EQ(SnapToDeclared(spec, Found({Measured(1e4, 16, 1e-7)})).layers[0].frequencies,
            PlainFrequencies(1e4, 16));
}

// A graph that holds its frequencies as halves: near what is declared, and not it.
TEST(SnapToDeclared, KeepsWhatWasMeasuredWhereItDiffers) {
  const RopeProbeResult probe = Found({Measured(1e4, 16, 3e-4), Still()});
  EXPECT_EQ(SnapToDeclared(Declaring(), probe).layers[0], probe.layers[0].rope);
}

TEST(SnapToDeclared, GivesLayersThatTurnAlikeOneRotation) {
  const RopeProbeResult probe = Found({Measured(5e5, 16, 1e-7), Measured(1e4, 16, 1e-7),
                                       Measured(5e5, 16, -1e-7), Measured(5e5, 8, 1e-7)});
  const RopeSpec snapped = SnapToDeclared({}, probe);
  EXPECT_EQ(snapped.layers[0], probe.layers[0].rope);
  EXPECT_EQ(snapped.layers[1], probe.layers[1].rope);
  EXPECT_EQ(snapped.layers[2], snapped.layers[0]);
  EXPECT_EQ(snapped.layers[3], probe.layers[3].rope);
}

}  // namespace
}  // namespace carousel
