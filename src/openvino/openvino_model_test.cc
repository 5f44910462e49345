// SPDX-License-Identifier: Apache-2.0
// The rewritten model with an exact attention against the plain stateful model, both from the same
// files.
#include "openvino/openvino_model.h"

#include <gmock/gmock.h>
#include <gtest/gtest.h>

#include <algorithm>
#include <cmath>
#include <numeric>
#include <ostream>
#include <random>
#include <stdexcept>
#include <string>
#include <thread>
#include <utility>
#include <vector>

#include "base/parallel.h"
#include "models/dense_attention.h"
#include "models/plain_model.h"
#include "models/temporary_directory.h"
#include "models/tiny_decoder.h"
#include "openvino/row_buckets.h"

namespace carousel {
namespace {

using ::carousel::testing::DenseAttention;
using ::carousel::testing::PlainModel;
using ::carousel::testing::SaveTinyDecoder;
using ::carousel::testing::TemporaryDirectory;
using ::carousel::testing::TinyAlibiSlopes;
using ::carousel::testing::TinyDecoderOptions;
using ::carousel::testing::TinyMask;
using ::carousel::testing::TinyPairing;
using ::carousel::testing::TinyScaling;
using ::testing::ElementsAre;
using ::testing::FloatNear;
using ::testing::Pointwise;

std::vector<TokenId> RandomTokens(std::int64_t count, std::int64_t vocabulary) {
  std::mt19937 random(7);
  std::uniform_int_distribution<TokenId> distribution(0, static_cast<TokenId>(vocabulary) - 1);
  std::vector<TokenId> tokens;
  for (std::int64_t i = 0; i < count; ++i) tokens.push_back(distribution(random));
  return tokens;
}

std::vector<std::int64_t> Counting(std::int64_t begin, std::int64_t count) {
  std::vector<std::int64_t> values(static_cast<std::size_t>(count));
  std::iota(values.begin(), values.end(), begin);
  return values;
}

// Feeds `tokens` at positions from `position` and asks for all logits.
std::span<const float> StepAll(Model& model, AttentionCallback& attention,
                               std::span<const TokenId> tokens, std::int64_t position) {
  const auto positions = Counting(position, std::ssize(tokens));
  const auto rows = Counting(0, std::ssize(tokens));
  return model.Forward({tokens, positions, rows}, attention);
}

struct NamedOptions {
  std::string name;
  TinyDecoderOptions options;
  friend void PrintTo(const NamedOptions& value, std::ostream* out) { *out << value.name; }
};

std::vector<NamedOptions> EveryKind() {
  TinyDecoderOptions late_part{
      .kv_heads = 4, .pairing = TinyPairing::kNeighbours, .first_dim = 8, .rotated_dims = 8};
  TinyDecoderOptions sinks{.layer_mask = {TinyMask::kSlidingGptOss, TinyMask::kCausal},
                           .sliding_window = 5,
                           .has_sinks = true};
  return {
      {"grouped_heads", {}},
      {"one_kv_head", {.kv_heads = 1}},
      {"every_head", {.kv_heads = 4}},
      {"wide_values", {.value_dim = 24}},
      {"narrow_values", {.kv_heads = 1, .value_dim = 8}},
      {"neighbours", {.pairing = TinyPairing::kNeighbours}},
      {"partial_neighbours", late_part},
      {"partial_halves", {.rotated_dims = 8}},
      {"linear", {.scaling = TinyScaling::kLinear}},
      {"llama3", {.scaling = TinyScaling::kLlama3}},
      {"yarn", {.scaling = TinyScaling::kYarn}},
      {"dynamic", {.scaling = TinyScaling::kDynamicNtk, .trained_window = 8}},
      {"dynamic_by_cache", {.scaling = TinyScaling::kDynamicNtkByCache, .trained_window = 8}},
      {"half_weights",
       {.layer_mask = {TinyMask::kSlidingGptOss, TinyMask::kCausal},
        .sliding_window = 5,
        .has_sinks = true,
        .scale = 0.3,
        .has_half_weights = true}},
      {"theta_per_layer", {.layer_theta = {1e4, 1e6}}},
      {"no_rope_in_a_layer", {.layers = 3, .layer_theta = {1e4, 0.0, 1e4}}},
      {"alibi", {.layer_theta = {0.0}, .layer_mask = {TinyMask::kAlibi}}},
      {"sliding", {.layer_mask = {TinyMask::kSlidingGptOss}, .sliding_window = 5}},
      {"sliding_in_a_form_the_pass_drops",
       {.layers = 3,
        .layer_mask = {TinyMask::kCausal, TinyMask::kSlidingUnknown, TinyMask::kSlidingUnknown},
        .sliding_window = 4}},
      {"sinks", sinks},
      {"own_scale", {.scale = 0.4}},
      {"soft_capped_scores",
       {.layers = 3,
        .layer_mask = {TinyMask::kCausal, TinyMask::kSlidingUnknown, TinyMask::kCausal},
        .sliding_window = 4,
        .scale = 0.7,
        .soft_cap = 0.8}},
      {"soft_capped_logits", {.has_soft_capped_logits = true}},
  };
}

class OpenVinoModelTest : public ::testing::TestWithParam<NamedOptions> {};

TEST_P(OpenVinoModelTest, EqualsThePlainModel) {
  const TinyDecoderOptions& options = GetParam().options;
  const TemporaryDirectory folder;
  SaveTinyDecoder(options, folder.path());
  PlainModel plain({.directory = folder.path(), .threads = 1});
  const auto model = LoadOpenVinoModel({.directory = folder.path(), .threads = 1});
  DenseAttention attention(model->spec());
  const auto tokens = RandomTokens(21, options.vocabulary_size);
  std::int64_t begin = 0;
  for (const std::int64_t count : {7, 9, 1, 1, 1, 2}) {
    const auto step =
        std::span(tokens).subspan(static_cast<std::size_t>(begin), static_cast<std::size_t>(count));
    const std::span<const float> want = plain.Step(step);
    const std::span<const float> got = StepAll(*model, attention, step, begin);
    // Weights are of order one, so logits are too; the plain model sums in f32 and in another
    // order.
    EXPECT_THAT(got, Pointwise(FloatNear(2e-4F), want)) << "tokens from " << begin;
    begin += count;
  }
}

INSTANTIATE_TEST_SUITE_P(EveryKind, OpenVinoModelTest, ::testing::ValuesIn(EveryKind()),
                         [](const auto& test) { return test.param.name; });

// A model in a folder of its own.
class LoadedModel {
 public:
  explicit LoadedModel(const TinyDecoderOptions& options) {
    SaveTinyDecoder(options, folder_.path());
    model_ = LoadOpenVinoModel({.directory = folder_.path(), .threads = 1});
  }
  Model* operator->() { return model_.get(); }
  Model& operator*() { return *model_; }
  const std::filesystem::path& folder() const { return folder_.path(); }

 private:
  TemporaryDirectory folder_;
  std::unique_ptr<Model> model_;
};

TEST(OpenVinoModelSpecTest, SaysWhatTheGraphSays) {
  LoadedModel model({.layers = 3,
                     .vocabulary_size = 53,
                     .query_heads = 6,
                     .kv_heads = 2,
                     .value_dim = 24,
                     .scale = 0.3});
  const ModelSpec& spec = model->spec();
  EXPECT_EQ(spec.name, model.folder().filename().string());
  EXPECT_EQ(spec.architecture, "tiny");
  EXPECT_EQ(spec.vocabulary_size, 53);
  EXPECT_EQ(spec.trained_window, 256);
  EXPECT_EQ(spec.declared_rope_theta, 10000.0);
  EXPECT_EQ(spec.declared_attention_factor, 1.0);
  EXPECT_THAT(spec.end_tokens, ElementsAre(2, 3));
  ASSERT_EQ(spec.layers.size(), 3);
  for (std::size_t layer = 0; layer < 3; ++layer) {
    EXPECT_EQ(spec.layers[layer].name, "attention." + std::to_string(layer));
    EXPECT_EQ(spec.layers[layer].query_heads, 6);
    EXPECT_EQ(spec.layers[layer].kv_heads, 2);
    EXPECT_EQ(spec.layers[layer].key_dim, 16);
    EXPECT_EQ(spec.layers[layer].value_dim, 24);
    EXPECT_FLOAT_EQ(spec.layers[layer].scale, 0.3F);
    EXPECT_EQ(spec.layers[layer].sliding_window, 0);
    EXPECT_TRUE(spec.layers[layer].alibi_slopes.empty());
    EXPECT_TRUE(spec.layers[layer].sinks.empty());
  }
}

TEST(OpenVinoModelSpecTest, ScaleIsThatOfTheKeysWhereTheGraphGivesNone) {
  LoadedModel model({.key_dim = 16, .value_dim = 24});
  EXPECT_FLOAT_EQ(model->spec().layers[0].scale, 0.25F);
}

TEST(OpenVinoModelSpecTest, WindowsAreMeasuredInEveryForm) {
  const std::vector<std::pair<TinyMask, std::int64_t>> cases = {{TinyMask::kSlidingGptOss, 1},
                                                                {TinyMask::kSlidingGptOss, 100},
                                                                {TinyMask::kSlidingUnknown, 2},
                                                                {TinyMask::kSlidingUnknown, 23}};
  for (const auto& [form, window] : cases) {
    LoadedModel model({.layers = 3,
                       .layer_mask = {TinyMask::kCausal, form, TinyMask::kCausal},
                       .sliding_window = window});
    EXPECT_EQ(model->spec().layers[0].sliding_window, 0);
    EXPECT_EQ(model->spec().layers[1].sliding_window, window);
    EXPECT_EQ(model->spec().layers[2].sliding_window, 0);
  }
}

TEST(OpenVinoModelSpecTest, WindowsBeyondTheTrainedOneComeFromThePass) {
  LoadedModel model(
      {.trained_window = 64, .layer_mask = {TinyMask::kSlidingGptOss}, .sliding_window = 1000});
  EXPECT_EQ(model->spec().layers[0].sliding_window, 1000);
}

TEST(OpenVinoModelSpecTest, AlibiSlopesFallWithDistance) {
  const TinyDecoderOptions options{.layer_theta = {0.0}, .layer_mask = {TinyMask::kAlibi}};
  LoadedModel model(options);
  EXPECT_THAT(model->spec().layers[1].alibi_slopes,
              Pointwise(FloatNear(1e-4F), TinyAlibiSlopes(options)));
}

TEST(OpenVinoModelSpecTest, SoftCapsAreReadOffTheMasks) {
  LoadedModel model({.soft_cap = 1.5});
  EXPECT_EQ(model->spec().layers[1].soft_cap, 1.5F);
  EXPECT_EQ(model->spec().layers[1].scale, 0.25F);
}

TEST(OpenVinoModelSpecTest, YarnDeclaresItsAttentionFactor) {
  LoadedModel model({.scaling = TinyScaling::kYarn, .factor = 4.0});
  EXPECT_NEAR(model->spec().declared_attention_factor, 0.1 * std::log(4.0) + 1.0, 1e-12);
}

TEST(OpenVinoModelForwardTest, RowsAreThoseOfAll) {
  LoadedModel model({});
  const auto tokens = RandomTokens(20, 97);
  const auto positions = Counting(0, 20);
  DenseAttention attention(model->spec());
  const std::span<const float> all = StepAll(*model, attention, tokens, 0);
  const std::vector<float> want(all.begin(), all.end());
  for (const std::vector<std::int64_t>& rows : std::vector<std::vector<std::int64_t>>{
           {19}, {0}, {3, 4, 17}, {}, {0, 19}, Counting(0, 20), {7}, Counting(2, 7)}) {
    attention.Forget();
    const std::span<const float> got = model->Forward({tokens, positions, rows}, attention);
    ASSERT_EQ(got.size(), rows.size() * 97);
    for (std::size_t i = 0; i < rows.size(); ++i) {
      const auto row = std::span(want).subspan(static_cast<std::size_t>(rows[i]) * 97, 97);
      EXPECT_THAT(got.subspan(i * 97, 97), Pointwise(FloatNear(1e-5F), row));
    }
  }
}

// Shows another attention only how many tokens there are.
class TokenCounter : public AttentionCallback {
 public:
  explicit TokenCounter(AttentionCallback* inner) : inner_(inner) {}
  void Attend(std::int64_t layer, std::int64_t tokens, const float* q, const float* k,
              const float* v, float* out) override {
    counts.push_back(tokens);
    inner_->Attend(layer, tokens, q, k, v, out);
  }
  std::vector<std::int64_t> counts;

 private:
  AttentionCallback* inner_;
};

TEST(OpenVinoModelForwardTest, PaddingIsNeitherAttendedToNorReturned) {
  LoadedModel model({});
  DenseAttention attention(model->spec());
  const auto tokens = RandomTokens(static_cast<std::int64_t>(PaddedRows(81)), 97);
  for (const std::int64_t count : {2, 7, 13, 33, 41, 57, 81}) {
    const auto bucket = static_cast<std::int64_t>(PaddedRows(static_cast<std::size_t>(count)));
    attention.Forget();
    const std::span<const float> full =
        StepAll(*model, attention, std::span(tokens).first(static_cast<std::size_t>(bucket)), 0);
    const std::vector<float> want(full.begin(), full.begin() + count * 97);
    attention.Forget();
    TokenCounter counter(&attention);
    const std::span<const float> got =
        StepAll(*model, counter, std::span(tokens).first(static_cast<std::size_t>(count)), 0);
    EXPECT_THAT(counter.counts, ElementsAre(count, count));
    // The runtime ran as many rows in both, and a row knows of earlier tokens only: bit for bit.
    EXPECT_THAT(got, ::testing::ElementsAreArray(want)) << count;
  }
}

// One token as well, which has a body of the graph for itself.
TEST(OpenVinoModelForwardTest, RowsRoundAlikeWhereAsManyAreRun) {
  LoadedModel model({});
  DenseAttention attention(model->spec());
  const auto tokens = RandomTokens(8, 97);
  const std::span<const float> full = StepAll(*model, attention, tokens, 0);
  const std::vector<float> all(full.begin(), full.end());
  for (const std::int64_t count : {1, 3, 6, 8}) {
    attention.Forget();
    TokenCounter counter(&attention);
    const auto positions = Counting(0, count);
    const std::span<const float> got =
        model->Forward({.token_ids = std::span(tokens).first(static_cast<std::size_t>(count)),
                        .position_ids = positions,
                        .logit_rows = positions,
                        .sequences = {},
                        .least_rows = 8},
                       counter);
    EXPECT_THAT(counter.counts, ElementsAre(count, count));
    EXPECT_THAT(got, ::testing::ElementsAreArray(std::span(all).first(got.size()))) << count;
    EXPECT_EQ(std::ssize(got), count * 97);
  }
}

TEST(OpenVinoModelForwardTest, LayersAreCalledOnceInOrder) {
  LoadedModel model({.layers = 5});
  DenseAttention attention(model->spec());
  StepAll(*model, attention, RandomTokens(3, 97), 0);
  StepAll(*model, attention, RandomTokens(1, 97), 3);
  EXPECT_THAT(attention.calls(), ElementsAre(0, 1, 2, 3, 4, 0, 1, 2, 3, 4));
}

TEST(OpenVinoModelForwardTest, KeepsNothingBetweenSteps) {
  LoadedModel model({});
  DenseAttention attention(model->spec());
  const auto tokens = RandomTokens(300, 97);
  const auto first = StepAll(*model, attention, std::span(tokens).first(5), 0);
  const std::vector<float> want(first.begin(), first.end());
  attention.Forget();
  StepAll(*model, attention, tokens, 1000);  // more tokens than the inputs' first memory
  attention.Forget();
  EXPECT_THAT(StepAll(*model, attention, std::span(tokens).first(5), 0),
              Pointwise(FloatNear(1e-6F), want));
}

TEST(OpenVinoModelForwardTest, PositionsAreThoseGiven) {
  LoadedModel model({});
  DenseAttention attention(model->spec());
  const auto tokens = RandomTokens(6, 97);
  const auto near = StepAll(*model, attention, tokens, 0);
  const std::vector<float> want(near.begin(), near.end());
  // RoPE depends on differences only, so a shift of all positions changes nothing but rounding.
  attention.Forget();
  EXPECT_THAT(StepAll(*model, attention, tokens, 40), Pointwise(FloatNear(1e-3F), want));
  // Other differences do change something.
  attention.Forget();
  const auto rows = Counting(0, 6);
  const std::vector<std::int64_t> apart = {0, 10, 20, 30, 40, 50};
  const auto far = model->Forward({tokens, apart, rows}, attention);
  EXPECT_GT(std::abs(far.back() - want.back()), 1e-3F);
}

class Thrower : public AttentionCallback {
 public:
  void Attend(std::int64_t layer, std::int64_t, const float*, const float*, const float*,
              float*) override {
    ++calls;
    if (layer == 1) throw std::domain_error("the callback's own");
  }
  int calls = 0;
};

TEST(OpenVinoModelForwardTest, TheCallbacksExceptionPassesUnchanged) {
  LoadedModel model({.layers = 4});
  const auto tokens = RandomTokens(3, 97);
  Thrower thrower;
  try {
    StepAll(*model, thrower, tokens, 0);
    FAIL() << "nothing was thrown";
  } catch (const std::domain_error& error) {
    EXPECT_STREQ(error.what(), "the callback's own");
  }
  EXPECT_EQ(thrower.calls, 2) << "layers after the failure are still called";
  // And the model is as good as before.
  DenseAttention attention(model->spec());
  EXPECT_EQ(StepAll(*model, attention, tokens, 0).size(), 3 * 97);
}

TEST(OpenVinoModelForwardTest, TwoModelsDoNotMeet) {
  LoadedModel one({.seed = 1});
  LoadedModel other({.layers = 3, .seed = 2});
  DenseAttention attention_of_one(one->spec());
  DenseAttention attention_of_other(other->spec());
  const auto tokens = RandomTokens(4, 97);
  StepAll(*one, attention_of_one, tokens, 0);
  StepAll(*other, attention_of_other, tokens, 0);
  EXPECT_THAT(attention_of_one.calls(), ElementsAre(0, 1));
  EXPECT_THAT(attention_of_other.calls(), ElementsAre(0, 1, 2));
}

class WidthReader : public AttentionCallback {
 public:
  void Attend(std::int64_t, std::int64_t tokens, const float*, const float*, const float*,
              float* out) override {
    width = ParallelWidth();
    std::fill_n(out, tokens * 64, 0.0F);
  }
  std::int64_t width = 0;
};

TEST(OpenVinoModelForwardTest, TheCallbackHasTheInferencesThreads) {
  LoadedModel model({});
  const auto cores = static_cast<std::int64_t>(std::thread::hardware_concurrency());
  for (const std::int64_t threads : {1, 2}) {
    if (threads > cores) continue;
    const auto limited = LoadOpenVinoModel({.directory = model.folder(), .threads = threads});
    WidthReader reader;
    StepAll(*limited, reader, RandomTokens(3, 97), 0);
    EXPECT_EQ(reader.width, threads);
  }
}

TEST(OpenVinoModelForwardTest, Bf16StaysNearF32) {
  LoadedModel model({});
  const auto coarse = LoadOpenVinoModel(
      {.directory = model.folder(), .threads = 1, .precision = ModelPrecision::kBf16});
  const auto tokens = RandomTokens(12, 97);
  DenseAttention attention(model->spec());
  DenseAttention coarse_attention(coarse->spec());
  const std::span<const float> want = StepAll(*model, attention, tokens, 0);
  const std::span<const float> got = StepAll(*coarse, coarse_attention, tokens, 0);
  // 8 bits of mantissa, through two layers.
  EXPECT_THAT(got, Pointwise(FloatNear(0.15F), want));
}

}  // namespace
}  // namespace carousel
