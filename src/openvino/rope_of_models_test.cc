// SPDX-License-Identifier: Apache-2.0
// The position probe on every kind of RoPE, through the load path of real models.
#include <gmock/gmock.h>
#include <gtest/gtest.h>

#include <ostream>
#include <string>

#include "models/temporary_directory.h"
#include "models/tiny_decoder.h"
#include "openvino/openvino_model.h"
#include "rope/rope_probe.h"

namespace carousel {
namespace {

using ::carousel::testing::SaveTinyDecoder;
using ::carousel::testing::TemporaryDirectory;
using ::carousel::testing::TinyDecoderOptions;
using ::carousel::testing::TinyFrequencies;
using ::carousel::testing::TinyMask;
using ::carousel::testing::TinyPairing;
using ::carousel::testing::TinyScaling;

RopeProbeResult Probe(const TinyDecoderOptions& options) {
  const TemporaryDirectory folder;
  SaveTinyDecoder(options, folder.path());
  const auto model = LoadOpenVinoModel({.directory = folder.path(), .threads = 1});
  return ProbeRope(*model, {.tokens = {}, .trained_window = model->spec().trained_window});
}

struct NamedOptions {
  std::string name;
  TinyDecoderOptions options;
  friend void PrintTo(const NamedOptions& value, std::ostream* out) { *out << value.name; }
};

class RopeOfModelsTest : public ::testing::TestWithParam<NamedOptions> {};

TEST_P(RopeOfModelsTest, ProbeFindsWhatTheModelWasBuiltWith) {
  const TinyDecoderOptions& options = GetParam().options;
  const RopeProbeResult result = Probe(options);
  ASSERT_EQ(result.verdict, RopeVerdict::kRotates) << result.reason;
  ASSERT_EQ(std::ssize(result.layers), options.layers);
  const Pairing pairing =
      options.pairing == TinyPairing::kHalves ? Pairing::kHalves : Pairing::kNeighbours;
  for (std::int64_t layer = 0; layer < options.layers; ++layer) {
    const LayerRopeFinding& finding = result.layers[static_cast<std::size_t>(layer)];
    const auto& thetas = options.layer_theta;
    const double theta = thetas.size() == 1 ? thetas[0] : thetas[static_cast<std::size_t>(layer)];
    SCOPED_TRACE("layer " + std::to_string(layer) + ": " + finding.reason);
    if (theta == 0.0) {
      EXPECT_EQ(finding.verdict, RopeVerdict::kDoesNotRotate);
      continue;
    }
    ASSERT_EQ(finding.verdict, RopeVerdict::kRotates);
    EXPECT_EQ(finding.rope.pairing, pairing);
    EXPECT_EQ(finding.rope.first_dim, options.first_dim);
    EXPECT_EQ(finding.rope.rotated_dims, options.rotated_dims);
    const std::vector<double> want = TinyFrequencies(options, layer);
    ASSERT_EQ(finding.rope.frequencies.size(), want.size());
    // Constants of 11 bits are what the model then rotates by.
    const double tolerance = options.has_half_weights ? 6e-4 : 1e-4;
    for (std::size_t i = 0; i < want.size(); ++i) {
      EXPECT_NEAR(finding.rope.frequencies[i] / want[i], 1.0, tolerance) << "pair " << i;
    }
  }
}

INSTANTIATE_TEST_SUITE_P(
    EveryKind, RopeOfModelsTest,
    ::testing::Values(
        NamedOptions{"halves", {}},
        NamedOptions{"neighbours", {.pairing = TinyPairing::kNeighbours}},
        NamedOptions{"partial_halves", {.rotated_dims = 8}},
        NamedOptions{"partial_neighbours",
                     {.kv_heads = 4,
                      .pairing = TinyPairing::kNeighbours,
                      .first_dim = 8,
                      .rotated_dims = 8}},
        NamedOptions{"linear", {.scaling = TinyScaling::kLinear}},
        NamedOptions{"llama3", {.scaling = TinyScaling::kLlama3}},
        NamedOptions{"yarn", {.scaling = TinyScaling::kYarn}},
        NamedOptions{"theta_per_layer", {.layers = 3, .layer_theta = {1e4, 1e6, 1e3}}},
        NamedOptions{"no_rope_in_a_layer", {.layers = 3, .layer_theta = {1e4, 0.0, 1e4}}},
        NamedOptions{"sliding", {.layer_mask = {TinyMask::kSlidingGptOss}, .sliding_window = 5}},
        NamedOptions{"half_weights", {.has_half_weights = true}},
        NamedOptions{"sinks", {.has_sinks = true}}, NamedOptions{"wide_values", {.value_dim = 24}}),
    [](const auto& test) { return test.param.name; });

TEST(RopeOfOtherModelsTest, DynamicScalingIsRefusedWithTheReason) {
  for (const TinyScaling scaling : {TinyScaling::kDynamicNtk, TinyScaling::kDynamicNtkByCache}) {
    const RopeProbeResult result = Probe({.scaling = scaling});
    EXPECT_EQ(result.verdict, RopeVerdict::kRefused);
    EXPECT_FALSE(result.reason.empty());
    EXPECT_FALSE(result.layers[0].reason.empty());
  }
}

TEST(RopeOfOtherModelsTest, AlibiDoesNotRotate) {
  const RopeProbeResult result = Probe({.layer_theta = {0.0}, .layer_mask = {TinyMask::kAlibi}});
  EXPECT_EQ(result.verdict, RopeVerdict::kDoesNotRotate) << result.reason;
  for (const LayerRopeFinding& finding : result.layers) {
    EXPECT_EQ(finding.verdict, RopeVerdict::kDoesNotRotate);
  }
}

TEST(RopeOfOtherModelsTest, NoPositionsAtAllDoesNotRotate) {
  EXPECT_EQ(Probe({.layer_theta = {0.0}}).verdict, RopeVerdict::kDoesNotRotate);
}

}  // namespace
}  // namespace carousel
