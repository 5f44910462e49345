// SPDX-License-Identifier: Apache-2.0
// The default model: what the tiny decoders show, once on real weights.
#include <gmock/gmock.h>
#include <gtest/gtest.h>

#include <algorithm>
#include <cmath>
#include <cstdlib>
#include <filesystem>
#include <fstream>
#include <memory>
#include <numeric>
#include <span>
#include <vector>

#include "models/dense_attention.h"
#include "models/plain_model.h"
#include "openvino/openvino_model.h"
#include "openvino/openvino_tokenizer.h"
#include "rope/rope_probe.h"
#include "testing/default_model.h"

namespace carousel {
namespace {

using ::carousel::testing::DefaultModelDirectory;
using ::carousel::testing::DenseAttention;
using ::carousel::testing::PlainModel;
using ::testing::SizeIs;

class DefaultModelTest : public ::testing::Test {
 protected:
  static void SetUpTestSuite() {
    if (!std::filesystem::exists(DefaultModelDirectory())) return;
    model_ = LoadOpenVinoModel({.directory = DefaultModelDirectory()}).release();
  }
  static void TearDownTestSuite() {
    delete model_;
    model_ = nullptr;
  }
  void SetUp() override {
    if (model_ == nullptr) GTEST_SKIP() << "there is no model at " << DefaultModelDirectory();
  }

  // Logits of the last of `tokens`, at positions from `position`.
  static std::span<const float> Step(Model& model, AttentionCallback& attention,
                                     std::span<const TokenId> tokens, std::int64_t position) {
    std::vector<std::int64_t> positions(tokens.size());
    std::iota(positions.begin(), positions.end(), position);
    const std::vector<std::int64_t> rows = {std::ssize(tokens) - 1};
    return model.Forward({tokens, positions, rows}, attention);
  }

  static Model* model_;
};

Model* DefaultModelTest::model_ = nullptr;

TEST_F(DefaultModelTest, IsDescribedByItsFiles) {
  const ModelSpec& spec = model_->spec();
  EXPECT_EQ(spec.architecture, "llama");
  EXPECT_EQ(spec.vocabulary_size, 49152);
  EXPECT_EQ(spec.trained_window, 8192);
  EXPECT_THAT(spec.end_tokens, ::testing::Contains(2));
  ASSERT_THAT(spec.layers, SizeIs(30));
  for (const AttentionLayerSpec& layer : spec.layers) {
    EXPECT_EQ(layer.query_heads, 9);
    EXPECT_EQ(layer.kv_heads, 3);
    EXPECT_EQ(layer.key_dim, 64);
    EXPECT_EQ(layer.value_dim, 64);
    EXPECT_EQ(layer.scale, 0.125F);
    EXPECT_EQ(layer.sliding_window, 0);
  }
}

TEST_F(DefaultModelTest, RotatesByTheThetaThatTheProbeFinds) {
  const RopeProbeResult result =
      ProbeRope(*model_, {.tokens = {}, .trained_window = model_->spec().trained_window});
  ASSERT_EQ(result.verdict, RopeVerdict::kRotates) << result.reason;
  for (const LayerRopeFinding& layer : result.layers) {
    EXPECT_EQ(layer.rope.pairing, Pairing::kHalves);
    EXPECT_EQ(layer.rope.rotated_dims, 64);
    EXPECT_NEAR(layer.fitted_theta, 100000.0, 20.0);
  }
}

TEST_F(DefaultModelTest, GreedyTokensAreThePlainModels) {
  const auto tokenizer =
      LoadOpenVinoTokenizer(DefaultModelDirectory(), model_->spec().vocabulary_size);
  PlainModel plain({.directory = DefaultModelDirectory(), .last_row_only = true});
  DenseAttention attention(model_->spec());
  for (const char* text :
       {"The capital of France is", "def fibonacci(n):\n    \"\"\"", "1, 2, 3, 4,"}) {
    plain.Forget();
    attention.Forget();
    std::vector<TokenId> step = tokenizer->Encode(text, {});
    std::int64_t position = 0;
    for (int i = 0; i < 24; ++i) {
      const std::span<const float> want = plain.Step(step);
      const std::span<const float> got = Step(*model_, attention, step, position);
      position += std::ssize(step);
      ASSERT_EQ(got.size(), want.size());
      float largest_difference = 0.0F;
      for (std::size_t j = 0; j < got.size(); ++j) {
        largest_difference = std::max(largest_difference, std::abs(got[j] - want[j]));
      }
      // Logits reach 40; the plain model sums in another order, through thirty layers.
      EXPECT_LT(largest_difference, 5e-3F) << text << ", token " << i;
      const auto best = std::max_element(want.begin(), want.end());
      const float ours = got[static_cast<std::size_t>(best - want.begin())];
      EXPECT_GE(ours, *std::max_element(got.begin(), got.end()) - 5e-3F);
      step = {static_cast<TokenId>(best - want.begin())};
    }
  }
}

// Of this process, now.
double ResidentMegabytes() {
  constexpr double kPagesPerMegabyte = 256.0;
  std::ifstream pages("/proc/self/statm");
  double all = 0.0;
  double resident = 0.0;
  pages >> all >> resident;
  return resident / kPagesPerMegabyte;
}

// The runtime keeps about 0.6 MB for each number of rows that it has run.
TEST_F(DefaultModelTest, ManyLengthsTakeTheMemoryOfFew) {
  class NoAttention : public AttentionCallback {
   public:
    void Attend(std::int64_t, std::int64_t tokens, const float*, const float*, const float*,
                float* out) override {
      std::fill_n(out, tokens * 9 * 64, 0.0F);
    }
  } attention;
  constexpr std::int64_t kLongest = 48;
  const std::vector<TokenId> tokens(kLongest, 504);
  const auto run = [&](std::int64_t count) {
    Step(*model_, attention, std::span(tokens).first(static_cast<std::size_t>(count)), 0);
  };
  run(kLongest);  // the buffers, and the weights as steps of such lengths want them
  const double before = ResidentMegabytes();
  for (std::int64_t count = 9; count < kLongest; ++count) run(count);
  // 16 numbers of rows for 39 lengths.
  EXPECT_LT(ResidentMegabytes() - before, 9.0);
}

TEST_F(DefaultModelTest, RoundedActivationsStayNear) {
  const auto rounded = LoadOpenVinoModel(
      {.directory = DefaultModelDirectory(), .precision = ModelPrecision::kInt8Activations});
  const std::vector<TokenId> tokens = {504, 3575, 282, 4649, 314};  // The capital of France is
  DenseAttention attention(model_->spec());
  DenseAttention rounded_attention(rounded->spec());
  const std::span<const float> want = Step(*model_, attention, tokens, 0);
  const std::span<const float> got = Step(*rounded, rounded_attention, tokens, 0);
  ASSERT_EQ(got.size(), want.size());
  double difference = 0.0;
  for (std::size_t i = 0; i < got.size(); ++i) difference += std::abs(got[i] - want[i]);
  // Equal where the CPU has no VNNI.
  EXPECT_LT(difference / static_cast<double>(got.size()), 0.5);
}

}  // namespace
}  // namespace carousel
