// SPDX-License-Identifier: Apache-2.0
// Gemma 3 270M, the second real model: windows beside global layers, each kind with its own RoPE.
#include <gmock/gmock.h>
#include <gtest/gtest.h>

#include <algorithm>
#include <cmath>
#include <filesystem>
#include <memory>
#include <numeric>
#include <span>
#include <vector>

#include "carousel/single_sequence_engine.h"
#include "measure/borrowed_model.h"
#include "models/dense_attention.h"
#include "models/plain_model.h"
#include "openvino/openvino_model.h"
#include "openvino/openvino_tokenizer.h"
#include "rope/declared_rope.h"
#include "rope/rope_probe.h"

namespace carousel {
namespace {

using ::testing::ElementsAre;
using ::testing::SizeIs;

const std::filesystem::path& Folder() {
  static const std::filesystem::path folder =
      std::filesystem::path(CAROUSEL_SOURCE_DIR) / "models" / "gemma3-270m";
  return folder;
}

class GemmaModelTest : public ::testing::Test {
 protected:
  // Loaded once: it takes seconds.
  static void SetUpTestSuite() {
    if (!std::filesystem::exists(Folder() / "config.json")) return;
    model_ = LoadOpenVinoModel({.directory = Folder()}).release();
  }
  static void TearDownTestSuite() {
    delete model_;
    model_ = nullptr;
  }
  void SetUp() override {
    if (model_ == nullptr) GTEST_SKIP() << "./run model gemma3-270m brings the model";
  }
  static bool IsGlobal(std::size_t layer) { return (layer + 1) % 6 == 0; }

  static Model* model_;
};

Model* GemmaModelTest::model_ = nullptr;

constexpr const char* kText =
    "The lighthouse stood on a narrow cape, and for most of the year nobody came there but the "
    "keeper and the mail boat.";

TEST_F(GemmaModelTest, LayersAreWhatTheProbeAndTheFileSay) {
  const ModelSpec& spec = model_->spec();
  EXPECT_EQ(spec.architecture, "gemma3");
  EXPECT_EQ(spec.vocabulary_size, 262144);
  EXPECT_EQ(spec.trained_window, 32768);
  ASSERT_THAT(spec.layers, SizeIs(18));
  const RopeProbeResult probe =
      ProbeRope(*model_, {.tokens = {}, .trained_window = spec.trained_window});
  ASSERT_EQ(probe.verdict, RopeVerdict::kRotates) << probe.reason;
  EXPECT_NO_THROW(CheckDeclaredRope(spec, probe));
  for (std::size_t layer = 0; layer < spec.layers.size(); ++layer) {
    EXPECT_EQ(spec.layers[layer].query_heads, 4);
    EXPECT_EQ(spec.layers[layer].kv_heads, 1);
    EXPECT_EQ(spec.layers[layer].key_dim, 256);
    EXPECT_EQ(spec.layers[layer].sliding_window, IsGlobal(layer) ? 0 : 512) << layer;
    const double theta = IsGlobal(layer) ? 1e6 : 1e4;
    EXPECT_NEAR(probe.layers[layer].fitted_theta / theta, 1.0, 1e-4) << layer;
  }
}

TEST_F(GemmaModelTest, TextsBeginWithTheTokenThatTheModelNeeds) {
  const auto tokenizer = LoadOpenVinoTokenizer(Folder(), 262144);
  EXPECT_TRUE(tokenizer->CanEncodeInPieces());
  EXPECT_THAT(tokenizer->Encode("The  \n\ncat \U0001F600", {.add_special_tokens = true}),
              ElementsAre(2, 818, 138, 108, 9307, 163543));
  const std::vector<TokenId> tokens = tokenizer->Encode(kText, {});
  EXPECT_EQ(tokenizer->Decode(tokens), kText);
}

TEST_F(GemmaModelTest, LogitsAreThePlainModels) {
  const auto tokenizer = LoadOpenVinoTokenizer(Folder(), model_->spec().vocabulary_size);
  testing::PlainModel plain({.directory = Folder(), .last_row_only = true});
  testing::DenseAttention attention(model_->spec());
  std::vector<TokenId> step = tokenizer->Encode(kText, {.add_special_tokens = true});
  std::int64_t position = 0;
  for (int i = 0; i < 4; ++i) {
    std::vector<std::int64_t> positions(step.size());
    std::iota(positions.begin(), positions.end(), position);
    const std::vector<std::int64_t> rows = {std::ssize(step) - 1};
    const std::span<const float> want = plain.Step(step);
    const std::span<const float> got = model_->Forward({step, positions, rows}, attention);
    position += std::ssize(step);
    ASSERT_EQ(got.size(), want.size());
    float largest_difference = 0.0F;
    for (std::size_t j = 0; j < got.size(); ++j) {
      largest_difference = std::max(largest_difference, std::abs(got[j] - want[j]));
    }
    // Logits reach 30; the plain model sums in another order.
    EXPECT_LT(largest_difference, 5e-3F) << "token " << i;
    step = {static_cast<TokenId>(std::max_element(want.begin(), want.end()) - want.begin())};
  }
}

// Global layers lose blocks, windows let go of theirs, and the two rotate by different tables:
// turning queries and turning keys have to say the same.
TEST_F(GemmaModelTest, QueryAndKeyRotationAgreePastTheWindow) {
  const auto tokenizer = LoadOpenVinoTokenizer(Folder(), 262144);
  std::vector<TokenId> tokens;
  while (tokens.size() < 700) {
    const auto more = tokenizer->Encode(kText, {.add_special_tokens = tokens.empty()});
    tokens.insert(tokens.end(), more.begin(), more.end());
  }
  std::vector<double> sums;
  for (const Rotation rotation : {Rotation::kQuery, Rotation::kKeys}) {
    EngineConfig config;
    config.cache = {.key_type = KvType::kF32, .value_type = KvType::kF32};
    config.chunk_size = 128;
    config.eviction = EvictionConfig{.recent_size = 64,
                                     .max_cache_size = 128,
                                     .rotation = rotation,
                                     .positions = PositionPolicy::kCompact};
    const auto engine =
        SingleSequenceEngine::Create(std::make_unique<BorrowedModel>(model_), config);
    engine->Submit({.prompt = tokens, .score_prompt = true});
    double sum = 0.0;
    while (engine->HasWork()) {
      for (const double nll : engine->Step().negative_log_likelihood) sum += nll;
    }
    const SequenceMetrics metrics = engine->metrics();
    EXPECT_GE(metrics.evicted_tokens, 700 - 128 - 128);
    EXPECT_LE(metrics.max_resident_tokens, 512 + 32 + 128);
    sums.push_back(sum / static_cast<double>(tokens.size()));
  }
  EXPECT_NEAR(sums[0], sums[1], 1e-3);
}

}  // namespace
}  // namespace carousel
