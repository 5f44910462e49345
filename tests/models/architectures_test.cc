// SPDX-License-Identifier: Apache-2.0
// Every architecture that tools/import_gguf.py knows, as a tiny random decoder that it imported
// (tools/tests/write_tiny_models.py): the whole way from the file to an evicted stream.
#include <gmock/gmock.h>
#include <gtest/gtest.h>

#include <cstdlib>
#include <filesystem>
#include <fstream>
#include <map>
#include <memory>
#include <nlohmann/json.hpp>
#include <numeric>
#include <ostream>
#include <random>
#include <string>
#include <utility>
#include <vector>

#include "carousel/error.h"
#include "golden/naive_judge.h"
#include "measure/borrowed_model.h"
#include "models/dense_attention.h"
#include "models/plain_model.h"
#include "models/temporary_directory.h"
#include "openvino/openvino_model.h"
#include "rope/declared_rope.h"
#include "rope/rope_probe.h"

namespace carousel {
namespace {

using ::testing::AllOf;
using ::testing::FloatNear;
using ::testing::HasSubstr;
using ::testing::Pointwise;

struct Expected {
  std::string architecture;
  std::vector<std::int64_t> windows;  // [layers]
  float soft_cap = 0.0F;
  float scale = 0.25F;
  std::vector<std::int64_t> rotated = {};  // [layers], dimensions; empty: all of each head's
  friend void PrintTo(const Expected& value, std::ostream* out) { *out << value.architecture; }
};

class ArchitectureTest : public ::testing::TestWithParam<Expected> {
 protected:
  static std::filesystem::path Folder() {
    return std::filesystem::path(CAROUSEL_TINY_MODELS) / GetParam().architecture;
  }
  // Loading is most of the work, so an architecture's tests share its model, and the engine's judge
  // has a second one.
  enum class Use { kTested, kJudge };
  static Model* Loaded(Use use = Use::kTested) {
    std::unique_ptr<Model>& model = models_[{GetParam().architecture, use}];
    if (!model) model = LoadOpenVinoModel({.directory = Folder(), .threads = 1});
    return model.get();
  }
  static void TearDownTestSuite() { models_.clear(); }
  static RopeProbeResult Probe(Model& model) {
    return ProbeRope(model, {.tokens = {}, .trained_window = model.spec().trained_window});
  }
  static std::vector<TokenId> Tokens(std::int64_t count) {
    std::mt19937 random(5);
    std::vector<TokenId> tokens;
    for (std::int64_t i = 0; i < count; ++i) tokens.push_back(static_cast<TokenId>(random() % 261));
    return tokens;
  }

 private:
  static std::map<std::pair<std::string, Use>, std::unique_ptr<Model>> models_;
};

std::map<std::pair<std::string, ArchitectureTest::Use>, std::unique_ptr<Model>>
    ArchitectureTest::models_;

TEST_P(ArchitectureTest, TheGraphSaysWhatTheFileSaid) {
  const Expected& want = GetParam();
  const Model* model = Loaded();
  const ModelSpec& spec = model->spec();
  EXPECT_EQ(spec.architecture, want.architecture);
  ASSERT_EQ(spec.layers.size(), want.windows.size());
  for (std::size_t layer = 0; layer < want.windows.size(); ++layer) {
    EXPECT_EQ(spec.layers[layer].sliding_window, want.windows[layer]) << layer;
    EXPECT_EQ(spec.layers[layer].soft_cap, want.soft_cap) << layer;
    EXPECT_FLOAT_EQ(spec.layers[layer].scale, want.scale) << layer;
  }
}

TEST_P(ArchitectureTest, EqualsThePlainModel) {
  Model* model = Loaded();
  testing::PlainModel plain({.directory = Folder(), .threads = 1});
  testing::DenseAttention attention(model->spec());
  const auto tokens = Tokens(40);
  std::int64_t begin = 0;
  for (const std::int64_t count : {23, 1, 1, 15}) {
    const auto step =
        std::span(tokens).subspan(static_cast<std::size_t>(begin), static_cast<std::size_t>(count));
    std::vector<std::int64_t> positions(step.size());
    std::vector<std::int64_t> rows(step.size());
    std::iota(positions.begin(), positions.end(), begin);
    std::iota(rows.begin(), rows.end(), 0);
    const std::span<const float> want = plain.Step(step);
    EXPECT_THAT(model->Forward({step, positions, rows}, attention),
                Pointwise(FloatNear(1e-3F), want))
        << "tokens from " << begin;
    begin += count;
  }
}

TEST_P(ArchitectureTest, TheProbeFindsWhatTheFileDeclares) {
  Model* model = Loaded();
  const RopeProbeResult probe = Probe(*model);
  ASSERT_EQ(probe.verdict, RopeVerdict::kRotates) << probe.reason;
  ASSERT_EQ(model->spec().declared_rope.size(), probe.layers.size());
  EXPECT_NO_THROW(CheckDeclaredRope(model->spec(), probe));
  for (std::size_t layer = 0; layer < probe.layers.size(); ++layer) {
    const std::int64_t want = GetParam().rotated.empty() ? model->spec().layers[layer].key_dim
                                                         : GetParam().rotated[layer];
    EXPECT_EQ(probe.layers[layer].rope.rotated_dims, want) << layer;
  }
}

TEST_P(ArchitectureTest, AnEvictedStreamEqualsDenseAttentionOverWhatIsLeft) {
  Model* naive_model = Loaded(Use::kJudge);
  const RopeSpec rope = Probe(*naive_model).spec();
  const auto tokens = Tokens(400);  // past the trained window of each
  for (const Rotation rotation : {Rotation::kQuery, Rotation::kKeys}) {
    EngineConfig config;
    config.cache = {.block_size = 8, .key_type = KvType::kF32, .value_type = KvType::kF32};
    config.chunk_size = 24;
    config.eviction = EvictionConfig{
        .start_size = 8, .recent_size = 16, .max_cache_size = 48, .rotation = rotation};
    const auto engine =
        SingleSequenceEngine::Create(std::make_unique<BorrowedModel>(Loaded()), config);
    testing::ExpectSameLikelihoods(*engine, {.model = naive_model,
                                             .rope = &rope,
                                             .config = &config,
                                             .tokens = tokens,
                                             .tolerance = 5e-3});
    EXPECT_GT(engine->metrics().evicted_tokens, 0);
  }
}

INSTANTIATE_TEST_SUITE_P(
    EveryOne, ArchitectureTest,
    ::testing::Values(
        Expected{.architecture = "llama", .windows = {0, 0}},
        Expected{.architecture = "smollm3", .windows = {0, 0, 0, 0}, .rotated = {16, 16, 16, 0}},
        Expected{.architecture = "qwen2", .windows = {0, 0}},
        Expected{.architecture = "qwen3", .windows = {0, 0}, .scale = 0.17677669F},
        Expected{.architecture = "gemma2", .windows = {8, 0}, .soft_cap = 2.0F},
        Expected{.architecture = "gemma3", .windows = {8, 8, 8, 8, 8, 0, 8}},
        Expected{.architecture = "phi3", .windows = {0, 0}, .rotated = {12, 12}},
        Expected{.architecture = "granite", .windows = {0, 0}, .scale = 0.2F}),
    [](const auto& test) { return test.param.architecture; });

TEST(DeclaredRopeOfImportsTest, AFileThatSaysSomethingElseIsRefusedWithBothValues) {
  const testing::TemporaryDirectory folder;
  const std::filesystem::path source = std::filesystem::path(CAROUSEL_TINY_MODELS) / "gemma3";
  for (const char* file : {"openvino_model.xml", "openvino_model.bin"}) {
    std::filesystem::copy(source / file, folder.path() / file);
  }
  nlohmann::json config = nlohmann::json::parse(std::ifstream(source / "config.json"));
  // The layer without a window is said to rotate as the others do.
  config["carousel"]["rope"]["layers"][5] = config["carousel"]["rope"]["layers"][0];
  std::ofstream(folder.path() / "config.json") << config;
  try {
    SingleSequenceEngine::Create(LoadOpenVinoModel({.directory = folder.path(), .threads = 1}), {});
    ADD_FAILURE() << "accepted";
  } catch (const Error& error) {
    EXPECT_EQ(error.code(), ErrorCode::kModel);
    // Theta is a million and not ten thousand: pair 1 of 8.
    EXPECT_THAT(error.what(), AllOf(HasSubstr("layer 5, pair 1"), HasSubstr("measured 0.1778"),
                                    HasSubstr("declare 0.3162")));
  }
}

}  // namespace
}  // namespace carousel
