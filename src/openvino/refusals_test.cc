// SPDX-License-Identifier: Apache-2.0
// Folders and graphs that cannot be used: each a carousel::Error that says where and what to do,
// never a crash.
#include <gmock/gmock.h>
#include <gtest/gtest.h>

#include <fstream>
#include <functional>
#include <iterator>
#include <memory>
#include <openvino/op/add.hpp>
#include <openvino/op/constant.hpp>
#include <openvino/op/convert.hpp>
#include <openvino/op/gather.hpp>
#include <openvino/op/matmul.hpp>
#include <openvino/op/parameter.hpp>
#include <openvino/op/result.hpp>
#include <openvino/op/scaled_dot_product_attention.hpp>
#include <openvino/op/unsqueeze.hpp>
#include <openvino/pass/serialize.hpp>
#include <random>
#include <string>

#include "carousel/error.h"
#include "models/dense_attention.h"
#include "models/temporary_directory.h"
#include "models/tiny_decoder.h"
#include "openvino/openvino_model.h"
#include "testing/random_cases.h"

namespace carousel {
namespace {

using ::carousel::testing::BuildTinyDecoder;
using ::carousel::testing::DenseAttention;
using ::carousel::testing::SaveTinyDecoder;
using ::carousel::testing::TemporaryDirectory;
using ::carousel::testing::TinyDecoderOptions;
using ::carousel::testing::TinyMask;
using ::carousel::testing::TinyScaling;
using ::testing::AllOf;
using ::testing::HasSubstr;
using ::testing::Lt;
using ::testing::Not;
using ::testing::SizeIs;

namespace fs = std::filesystem;

// The message of the error that loading gives; "loaded" when there is none.
std::string LoadError(const fs::path& folder) {
  try {
    LoadOpenVinoModel({.directory = folder, .threads = 1});
  } catch (const Error& error) {
    EXPECT_EQ(error.code(), ErrorCode::kModel) << error.what();
    EXPECT_EQ(error.field(), "model");
    EXPECT_THAT(std::string(error.what()), AllOf(Not(HasSubstr("\n")), SizeIs(Lt(700))));
    EXPECT_THAT(error.what(), HasSubstr(folder.string()));
    return error.what();
  }
  return "loaded";
}

std::string LoadError(const TinyDecoderOptions& options) {
  const TemporaryDirectory folder;
  SaveTinyDecoder(options, folder.path());
  return LoadError(folder.path());
}

std::string LoadError(const std::shared_ptr<ov::Model>& model) {
  const TemporaryDirectory folder;
  ov::pass::Serialize((folder.path() / "openvino_model.xml").string(),
                      (folder.path() / "openvino_model.bin").string())
      .run_on_model(model);
  return LoadError(folder.path());
}

std::string ReadFile(const fs::path& path) {
  std::ifstream file(path, std::ios::binary);
  return {std::istreambuf_iterator<char>(file), {}};
}

void WriteFile(const fs::path& path, const std::string& bytes) {
  std::ofstream(path, std::ios::binary) << bytes;
}

// --- Graphs ---

TEST(RefusedGraphTest, ScaleThatIsNoConstant) {
  EXPECT_THAT(LoadError(TinyDecoderOptions{.scale_from_input = true}),
              AllOf(HasSubstr("scale"), HasSubstr("attention.0")));
}

TEST(RefusedGraphTest, StateThatIsNotAttentions) {
  EXPECT_THAT(LoadError(TinyDecoderOptions{.has_recurrent_state = true}),
              AllOf(HasSubstr("state, recurrent."), HasSubstr("not supported")));
}

TEST(RefusedGraphTest, WhatReadsTheMaskBesideAttention) {
  EXPECT_THAT(LoadError(TinyDecoderOptions{.scaling = TinyScaling::kDynamicNtkByMask}),
              HasSubstr("attention_mask"));
}

TEST(RefusedGraphTest, AttentionThatLooksAhead) {
  EXPECT_THAT(
      LoadError(TinyDecoderOptions{.layer_mask = {TinyMask::kCausal, TinyMask::kBidirectional}}),
      AllOf(HasSubstr("attention.1"), HasSubstr("causal")));
}

TEST(RefusedGraphTest, ChunkedAttention) {
  EXPECT_THAT(
      LoadError(TinyDecoderOptions{.layer_mask = {TinyMask::kChunked}, .sliding_window = 7}),
      AllOf(HasSubstr("attention.0"), HasSubstr("chunked")));
}

TEST(RefusedGraphTest, SoftCapsOfOtherScores) {
  EXPECT_THAT(LoadError(TinyDecoderOptions{.soft_cap = 2.0, .caps_other_scores = true}),
              HasSubstr("soft cap of its attention attention.0 is one of other scores"));
}

TEST(RefusedGraphTest, BiasThatIsNotAlibi) {
  EXPECT_THAT(LoadError(TinyDecoderOptions{.layer_mask = {TinyMask::kSquareBias}}),
              AllOf(HasSubstr("attention.0"), HasSubstr("bias")));
}

std::shared_ptr<ov::op::v0::Parameter> Input(const std::string& name, ov::element::Type type,
                                             const ov::PartialShape& shape) {
  auto parameter = std::make_shared<ov::op::v0::Parameter>(type, shape);
  parameter->set_friendly_name(name);
  parameter->get_output_tensor(0).set_names({name});
  return parameter;
}

// logits = a row of a table per token: a model without attention.
std::shared_ptr<ov::Model> TableModel(const ov::ParameterVector& further) {
  const auto ids = Input("input_ids", ov::element::i64, {-1, -1});
  const auto table =
      ov::op::v0::Constant::create(ov::element::f32, ov::Shape{5, 5}, std::vector<float>(25));
  const auto axis = ov::op::v0::Constant::create(ov::element::i64, ov::Shape{}, {0});
  const auto rows = std::make_shared<ov::op::v8::Gather>(table, ids, axis);
  const auto result = std::make_shared<ov::op::v0::Result>(rows);
  result->get_output_tensor(0).set_names({"logits"});
  ov::ParameterVector inputs = {ids};
  inputs.insert(inputs.end(), further.begin(), further.end());
  return std::make_shared<ov::Model>(ov::ResultVector{result}, inputs);
}

TEST(RefusedGraphTest, NoAttention) {
  EXPECT_THAT(LoadError(TableModel({})), HasSubstr("ScaledDotProductAttention"));
}

TEST(RefusedGraphTest, InputsThatTextCannotGive) {
  const auto model = BuildTinyDecoder({});
  const auto encoder = Input("encoder_hidden_states", ov::element::f32, {-1, -1, 32});
  model->add_parameters({encoder});
  const auto logits = model->get_results()[0];
  EXPECT_THAT(LoadError(model), HasSubstr("encoder_hidden_states"));
}

TEST(RefusedGraphTest, EmbeddingsInPlaceOfTokens) {
  const auto embeddings = Input("inputs_embeds", ov::element::f32, {-1, -1, 8});
  EXPECT_THAT(
      LoadError(std::make_shared<ov::Model>(
          ov::OutputVector{std::make_shared<ov::op::v0::Convert>(embeddings, ov::element::f32)},
          ov::ParameterVector{embeddings})),
      HasSubstr("inputs_embeds"));
}

TEST(RefusedGraphTest, KeysAndValuesAsInputs) {
  EXPECT_THAT(
      LoadError(TableModel({Input("past_key_values.0.key", ov::element::f32, {-1, 2, -1, 8})})),
      AllOf(HasSubstr("stateful"), HasSubstr("past_key_values")));
}

// hidden = embeddings of the tokens, which attend to each other; no state.
TEST(RefusedGraphTest, AttentionWithoutState) {
  const auto model = TableModel({});
  const auto result = model->get_results()[0];
  const auto axis = ov::op::v0::Constant::create(ov::element::i64, ov::Shape{}, {1});
  const auto heads = std::make_shared<ov::op::v0::Unsqueeze>(result->input_value(0), axis);
  const auto attention =
      std::make_shared<ov::op::v13::ScaledDotProductAttention>(heads, heads, heads, true);
  attention->set_friendly_name("lonely");
  result->input(0).replace_source_output(attention);
  EXPECT_THAT(LoadError(model), AllOf(HasSubstr("lonely"), HasSubstr("state")));
}

TEST(RefusedGraphTest, SeveralOutputsNoneOfThemLogits) {
  const auto model = BuildTinyDecoder({});
  const auto logits = model->get_results()[0];
  logits->get_output_tensor(0).set_names({"something"});
  const auto second = std::make_shared<ov::op::v0::Result>(logits->input_value(0));
  model->add_results({second});
  EXPECT_THAT(LoadError(model), HasSubstr("logits"));
}

TEST(RefusedGraphTest, OtherOutputsAreLeftOut) {
  const TemporaryDirectory folder;
  SaveTinyDecoder({}, folder.path());
  const auto model = BuildTinyDecoder({});
  const auto norm = model->get_results()[0]->get_input_node_shared_ptr(0)->input_value(0);
  model->add_results({std::make_shared<ov::op::v0::Result>(norm)});
  ov::pass::Serialize((folder.path() / "openvino_model.xml").string(),
                      (folder.path() / "openvino_model.bin").string())
      .run_on_model(model);
  EXPECT_EQ(LoadError(folder.path()), "loaded");
}

// --- Files ---

TEST(RefusedFilesTest, NoFolder) {
  EXPECT_THAT(LoadError(fs::path("/nowhere/at/all")), HasSubstr("not a folder"));
}

TEST(RefusedFilesTest, FolderWithoutAModel) {
  const TemporaryDirectory folder;
  EXPECT_THAT(LoadError(folder.path()),
              AllOf(HasSubstr("openvino_model.xml"), HasSubstr("missing")));
  SaveTinyDecoder({}, folder.path());
  fs::remove(folder.path() / "openvino_model.bin");
  EXPECT_THAT(LoadError(folder.path()),
              AllOf(HasSubstr("openvino_model.bin"), HasSubstr("missing")));
}

TEST(RefusedFilesTest, NotAnIr) {
  const TemporaryDirectory folder;
  SaveTinyDecoder({}, folder.path());
  for (const char* text :
       {"", "hello", "<?xml version=\"1.0\"?><html/>", "<net/>", "<net version=\"11\"></net>",
        "<net version=\"11\"><layers/><edges/></net>"}) {
    WriteFile(folder.path() / "openvino_model.xml", text);
    EXPECT_THAT(LoadError(folder.path()), Not("loaded")) << text;
  }
}

TEST(RefusedFilesTest, WeightsOfAnotherModel) {
  const TemporaryDirectory folder;
  SaveTinyDecoder({}, folder.path());
  WriteFile(folder.path() / "openvino_model.bin", std::string(100, 'x'));
  EXPECT_THAT(LoadError(folder.path()),
              AllOf(HasSubstr("openvino_model.bin"), HasSubstr("100 bytes")));
}

// Loads a model whose files were changed. It may load; whatever it then computes must not crash.
void LoadAndStep(const fs::path& folder) {
  std::unique_ptr<Model> model;
  try {
    model = LoadOpenVinoModel({.directory = folder, .threads = 1});
    DenseAttention attention(model->spec());
    const std::vector<TokenId> tokens = {1, 2, 3};
    const std::vector<std::int64_t> positions = {0, 1, 2};
    const std::vector<std::int64_t> rows = {2};
    model->Forward({tokens, positions, rows}, attention);
  } catch (const Error& error) {
    EXPECT_THAT(std::string(error.what()), AllOf(Not(HasSubstr("\n")), SizeIs(Lt(700))));
  }
}

class DamagedFilesTest : public ::testing::Test {
 protected:
  DamagedFilesTest() {
    SaveTinyDecoder({.layers = 1,
                     .vocabulary_size = 11,
                     .hidden_size = 8,
                     .key_dim = 4,
                     .value_dim = 4,
                     .rotated_dims = 4},
                    folder_.path());
    xml_ = ReadFile(Xml());
    bin_ = ReadFile(Bin());
  }
  fs::path Xml() const { return folder_.path() / "openvino_model.xml"; }
  fs::path Bin() const { return folder_.path() / "openvino_model.bin"; }

  TemporaryDirectory folder_;
  std::string xml_;
  std::string bin_;
};

TEST_F(DamagedFilesTest, TruncatedXmlIsRefused) {
  constexpr std::size_t kSteps = 40;
  for (std::size_t i = 0; i < kSteps; ++i) {
    // Short of the closing tag.
    const std::size_t length = (xml_.size() - 8) * i / kSteps;
    WriteFile(Xml(), xml_.substr(0, length));
    EXPECT_THAT(LoadError(folder_.path()), HasSubstr("openvino_model.xml")) << length << " bytes";
  }
}

TEST_F(DamagedFilesTest, TruncatedBinIsRefused) {
  constexpr std::size_t kSteps = 40;
  for (std::size_t i = 0; i < kSteps; ++i) {
    const std::size_t length = (bin_.size() - 1) * i / kSteps;
    WriteFile(Bin(), bin_.substr(0, length));
    EXPECT_THAT(LoadError(folder_.path()), HasSubstr("openvino_model.bin")) << length << " bytes";
  }
  WriteFile(Bin(), bin_.substr(0, bin_.size() - 1));
  EXPECT_THAT(LoadError(folder_.path()), HasSubstr("openvino_model.bin"));
}

TEST_F(DamagedFilesTest, FlippedBitsDoNotCrash) {
  std::mt19937 random(5);
  for (int i = 0; i < RandomCases(80); ++i) {
    const bool is_xml = i % 2 == 0;
    std::string bytes = is_xml ? xml_ : bin_;
    bytes[random() % bytes.size()] ^= static_cast<char>(1 << (random() % 8));
    WriteFile(Xml(), is_xml ? bytes : xml_);
    WriteFile(Bin(), is_xml ? bin_ : bytes);
    LoadAndStep(folder_.path());
  }
}

}  // namespace
}  // namespace carousel
