// SPDX-License-Identifier: Apache-2.0
#include "rope/probe_text.h"

#include <gtest/gtest.h>

#include <random>

namespace carousel {
namespace {

ModelSpec SpecOf(std::int64_t layers) {
  ModelSpec spec;
  spec.layers.resize(static_cast<std::size_t>(layers));
  for (AttentionLayerSpec& layer : spec.layers) layer.key_dim = 16;
  return spec;
}

RopeProbeResult Probe() {
  RopeProbeResult probe{.verdict = RopeVerdict::kRotates, .reason = "2 of 3\nlayers", .layers = {}};
  LayerRopeFinding turning;
  turning.verdict = RopeVerdict::kRotates;
  turning.rope = {.pairing = Pairing::kNeighbours,
                  .first_dim = 4,
                  .rotated_dims = 12,
                  .frequencies = PlainFrequencies(12345.678, 12),
                  .attention_factor = 1.0 / 3.0};
  turning.fitted_theta = 12345.678;
  turning.largest_deviation = 1.0 / 7.0e8;
  turning.largest_residual = 0.1;
  turning.reason = "neighbours pairing";
  LayerRopeFinding still;
  still.verdict = RopeVerdict::kDoesNotRotate;
  probe.layers = {turning, still, turning};
  return probe;
}

TEST(ProbeText, ComesBackBitForBit) {
  const RopeProbeResult probe = Probe();
  const auto read = ParseProbeText(ProbeText(probe), SpecOf(3));
  ASSERT_TRUE(read.has_value());
  EXPECT_EQ(read->verdict, probe.verdict);
  EXPECT_EQ(read->reason, "2 of 3 layers");
  ASSERT_EQ(read->layers.size(), 3U);
  for (std::size_t i = 0; i < 3; ++i) {
    EXPECT_EQ(read->layers[i].verdict, probe.layers[i].verdict);
    EXPECT_EQ(read->layers[i].rope, probe.layers[i].rope);
    EXPECT_EQ(read->layers[i].reason, probe.layers[i].reason);
    EXPECT_EQ(read->layers[i].fitted_theta, probe.layers[i].fitted_theta);
    EXPECT_EQ(read->layers[i].largest_deviation, probe.layers[i].largest_deviation);
    EXPECT_EQ(read->layers[i].largest_residual, probe.layers[i].largest_residual);
  }
}

TEST(ProbeText, IsNothingForAnotherModel) {
  const std::string text = ProbeText(Probe());
  EXPECT_FALSE(ParseProbeText(text, SpecOf(2)).has_value());
  EXPECT_FALSE(ParseProbeText(text, SpecOf(4)).has_value());
  ModelSpec narrow = SpecOf(3);
  narrow.layers[2].key_dim = 8;
  EXPECT_FALSE(ParseProbeText(text, narrow).has_value());
}

// Cut short, or with any one character changed, it is nothing or something of the right shape.
TEST(ProbeText, DamagedTextIsNeverTaken) {
  const std::string text = ProbeText(Probe());
  for (std::size_t size = 0; size < text.size(); ++size)
    EXPECT_FALSE(ParseProbeText(std::string_view(text).substr(0, size), SpecOf(3)).has_value());
  std::mt19937_64 generator(1);
  for (int i = 0; i < 20000; ++i) {
    std::string damaged = text;
    damaged[generator() % text.size()] = static_cast<char>(generator() % 256);
    const auto read = ParseProbeText(damaged, SpecOf(3));
    if (!read) continue;
    for (const LayerRopeFinding& layer : read->layers) {
      EXPECT_EQ(std::ssize(layer.rope.frequencies), layer.rope.rotated_dims / 2);
      EXPECT_LE(layer.rope.first_dim + layer.rope.rotated_dims, 16);
    }
  }
}

}  // namespace
}  // namespace carousel
