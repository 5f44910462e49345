// SPDX-License-Identifier: Apache-2.0
// Control words in prompts, with the tokenizers of real models. A model that is not there is
// skipped.
#include <gmock/gmock.h>
#include <gtest/gtest.h>

#include <filesystem>
#include <map>
#include <memory>
#include <string>

#include "openvino/openvino_tokenizer.h"
#include "testing/default_model.h"
#include "text/prompt_encoder.h"

namespace carousel {
namespace {

using ::testing::ElementsAre;

struct RealModel {
  std::filesystem::path folder;
  std::int64_t vocabulary_size;
  std::size_t control_tokens;
  std::string end_of_turn;
  std::string same_length;  // with other letters
  std::string user, assistant;
};

RealModel DefaultModel() {
  return {.folder = testing::DefaultModelDirectory(),
          .vocabulary_size = 49152,
          .control_tokens = 17,
          .end_of_turn = "<|im_end|>",
          .same_length = "<|in_end|>",
          .user = "<|im_start|>user\n",
          .assistant = "<|im_end|>\n<|im_start|>assistant\n"};
}

RealModel Gemma() {
  return {.folder = std::filesystem::path(CAROUSEL_SOURCE_DIR) / "models" / "gemma3-270m",
          .vocabulary_size = 262144,
          .control_tokens = 6249,
          .end_of_turn = "<end_of_turn>",
          .same_length = "<end_of_term>",
          .user = "<start_of_turn>user\n",
          .assistant = "<end_of_turn>\n<start_of_turn>model\n"};
}

class ControlWordsTest : public ::testing::TestWithParam<RealModel (*)()> {
 protected:
  void SetUp() override {
    if (!std::filesystem::exists(model_.folder / "config.json"))
      GTEST_SKIP() << "there is no model at " << model_.folder;
    tokenizer_ = Loaded(model_);
    encoder_ = std::make_unique<PromptEncoder>(*tokenizer_);
  }
  // Loading takes seconds, so once.
  static std::shared_ptr<const Tokenizer> Loaded(const RealModel& model) {
    static std::map<std::filesystem::path, std::shared_ptr<const Tokenizer>> loaded;
    std::shared_ptr<const Tokenizer>& tokenizer = loaded[model.folder];
    if (!tokenizer) tokenizer = LoadOpenVinoTokenizer(model.folder, model.vocabulary_size);
    return tokenizer;
  }

  const RealModel model_ = GetParam()();
  std::shared_ptr<const Tokenizer> tokenizer_;
  std::unique_ptr<PromptEncoder> encoder_;
};

TEST_P(ControlWordsTest, AreKnown) {
  ASSERT_EQ(tokenizer_->control_tokens().size(), model_.control_tokens);
  for (std::size_t i = 0; i < model_.control_tokens; i += 1 + i / 8) {
    const ControlToken& control = tokenizer_->control_tokens()[i];
    EXPECT_THAT(tokenizer_->Encode(control.text, {.add_special_tokens = false}),
                ElementsAre(control.token))
        << control.text;
    EXPECT_EQ(tokenizer_->Decode({&control.token, 1}), "");
  }
}

TEST_P(ControlWordsTest, AreTextWhereUsersWriteThem) {
  for (std::size_t i = 0; i < model_.control_tokens; i += 1 + i / 8) {
    const std::string& word = tokenizer_->control_tokens()[i].text;
    for (const std::string& text :
         {word, "Hi." + word + "\n", word + word, "x " + word + " y", word.substr(0, 1) + word}) {
      const std::vector<TokenId> tokens = encoder_->EncodeText(text);
      EXPECT_EQ(tokenizer_->Decode(tokens), text);
      for (const TokenId token : tokens)
        EXPECT_FALSE(tokenizer_->Decode({&token, 1}).empty()) << text << ": " << token;
    }
  }
}

TEST_P(ControlWordsTest, CostWhatOtherLettersCost) {
  const auto cost = [&](const std::string& end) {
    return encoder_->EncodeText("Hi." + end + "\nThe password is swordfish." + end).size();
  };
  EXPECT_EQ(cost(model_.end_of_turn), cost(model_.same_length));
}

// But where a content begins with white space, which a tokenizer may join to a mark's.
TEST_P(ControlWordsTest, PartsAreTheTokensOfTheWholeTurn) {
  for (const char* content : {"Hello, who are you?", "two\n\nparagraphs", "caf\u00e9 \u4f60\u597d",
                              "x", "1234", "def f(x):\n\treturn x", "ends in spaces  "}) {
    const PromptParts parts = {{.text = model_.user, .is_mark = true},
                               {.text = content},
                               {.text = model_.assistant, .is_mark = true}};
    EXPECT_EQ(encoder_->Encode(parts),
              tokenizer_->Encode(JoinedText(parts), {.add_special_tokens = false}))
        << content;
  }
}

INSTANTIATE_TEST_SUITE_P(Models, ControlWordsTest, ::testing::Values(&DefaultModel, &Gemma));

}  // namespace
}  // namespace carousel
