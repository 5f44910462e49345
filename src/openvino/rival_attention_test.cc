// SPDX-License-Identifier: Apache-2.0
// OpenVINO's attention does the same work as ours: both are held against the dense reference.
#include "openvino/rival_attention.h"

#include <gtest/gtest.h>

#include <cmath>
#include <string>
#include <tuple>

#include "base/parallel.h"
#include "carousel/error.h"

namespace carousel {
namespace {

AttentionShape Shape(std::int64_t context, std::int64_t queries) {
  AttentionShape shape = DefaultAttentionShape();
  shape.context = context;
  shape.queries = queries;
  shape.layers = 2;
  return shape;
}

class RivalAttentionTest
    : public testing::TestWithParam<std::tuple<RivalKvType, std::int64_t, std::int64_t>> {};

TEST_P(RivalAttentionTest, DoesTheWork) {
  const auto [type, context, queries] = GetParam();
  const AttentionLoad load = MakeAttentionLoad(Shape(context, queries), 1'000'000);
  const auto rival = MakeRivalAttention(load, type);
  EXPECT_EQ(rival->facts().engine, "openvino");
  EXPECT_EQ(rival->facts().threads, ParallelWidth());
  const std::int64_t elements = context * 3 * 128;
  if (type == RivalKvType::kF16) {
    EXPECT_EQ(rival->facts().bytes_per_layer, 2 * elements);
  }
  EXPECT_GE(rival->facts().bytes_per_layer, elements);
  EXPECT_GE(rival->facts().layers * rival->facts().bytes_per_layer, 1'000'000);
  EXPECT_EQ(rival->facts().layers % 2, 0);
  const std::vector<double> expected = ReferenceOf(load).out;
  // The second run finds the new tokens in the cache, where they are written again.
  for (int run = 0; run < 2; ++run) {
    rival->Run();
    const std::vector<float> out = rival->Output();
    ASSERT_EQ(out.size(), expected.size());
    double square_error = 0.0;
    double square = 0.0;
    for (std::size_t i = 0; i < out.size(); ++i) {
      square_error += (out[i] - expected[i]) * (out[i] - expected[i]);
      square += expected[i] * expected[i];
    }
    // f16 rounds by 2^-12 on average; u8 has 256 levels over a range of some six deviations, in
    // keys, which move the weights, and in values.
    const double tolerance = type == RivalKvType::kF16 ? 2e-3 : 5e-2;
    EXPECT_LT(std::sqrt(square_error / square), tolerance);
  }
}

INSTANTIATE_TEST_SUITE_P(Loads, RivalAttentionTest,
                         testing::Combine(testing::Values(RivalKvType::kF16, RivalKvType::kU8),
                                          testing::Values(32, 160), testing::Values(1, 32)));

TEST(RivalAttention, SaysWhatItCannotDo) {
  AttentionShape shape = Shape(64, 1);
  shape.block_size = 16;
  const AttentionLoad load = MakeAttentionLoad(shape, 0);
  try {
    MakeRivalAttention(load, RivalKvType::kF16);
    FAIL();
  } catch (const Error& error) {
    EXPECT_NE(std::string(error.what()).find("32 tokens"), std::string::npos);
  }
}

}  // namespace
}  // namespace carousel
