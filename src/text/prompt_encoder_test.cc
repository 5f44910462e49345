// SPDX-License-Identifier: Apache-2.0
#include "text/prompt_encoder.h"

#include <gmock/gmock.h>
#include <gtest/gtest.h>
#include <rapidcheck/gtest.h>

#include <algorithm>

#include "testing/fake_tokenizer.h"
#include "testing/random_text.h"

namespace carousel {
namespace {

using ::testing::ElementsAre;

FakeTokenizer ChatTokenizer(const std::vector<std::string>& pieces = {" the", "ing", " hi"}) {
  return FakeTokenizer(pieces, FakeTokenizer::Partial::kRaw, true, {"<|end|>", "<|user|>", "<|e"});
}

TokenId Control(const FakeTokenizer& tokenizer, std::string_view text) {
  for (const ControlToken& control : tokenizer.control_tokens()) {
    if (control.text == text) return control.token;
  }
  return -1;
}

std::ptrdiff_t CountControls(const FakeTokenizer& tokenizer, const std::vector<TokenId>& tokens) {
  return std::count_if(tokens.begin(), tokens.end(),
                       [&](TokenId token) { return token >= tokenizer.special_token(); });
}

TEST(PromptEncoder, MarksAreControlTokensAndContentsAreText) {
  const FakeTokenizer tokenizer = ChatTokenizer();
  PromptEncoder encoder(tokenizer);
  const std::vector<TokenId> prompt = encoder.Encode({{.text = "<|user|>", .is_mark = true},
                                                      {.text = "a<|end|>"},
                                                      {.text = "<|end|>", .is_mark = true}});
  EXPECT_THAT(prompt, ElementsAre(Control(tokenizer, "<|user|>"), 'a', '<', '|', 'e', 'n', 'd', '|',
                                  '>', Control(tokenizer, "<|end|>")));
}

TEST(PromptEncoder, AControlWordInATextCostsWhatOtherLettersCost) {
  // "<|" and "nd|>" are pieces: a cut inside them would cost a token.
  const FakeTokenizer tokenizer = ChatTokenizer({"<|", "nd|>"});
  PromptEncoder encoder(tokenizer);
  EXPECT_EQ(encoder.EncodeText("x <|end|> y").size(), encoder.EncodeText("x <|ond|> y").size());
  EXPECT_EQ(encoder.EncodeText("<|end|>").size(), encoder.EncodeText("<|ond|>").size());
}

TEST(PromptEncoder, SpacesAtTheEndOfAMarkBelongToTheNextWord) {
  const FakeTokenizer tokenizer = ChatTokenizer();
  PromptEncoder encoder(tokenizer);
  const std::vector<TokenId> prompt = encoder.Encode(
      {{.text = "U: ", .is_mark = true}, {.text = "hi"}, {.text = " \n", .is_mark = true}});
  EXPECT_THAT(prompt, ElementsAre('U', ':', 258, ' ', '\n'));
}

// White space after "<|user|>" is none of the text, as in Phi-3's tokenizer.
class SwallowingTokenizer : public FakeTokenizer {
 public:
  SwallowingTokenizer()
      : FakeTokenizer({}, FakeTokenizer::Partial::kRaw, true, {"<|end|>", "<|user|>"}) {}
  std::vector<TokenId> Encode(std::string_view text, const EncodeOptions& options) const override {
    std::string left;
    for (; !text.empty(); text.remove_prefix(1)) {
      if (!left.ends_with("<|user|>") || (text[0] != ' ' && text[0] != '\n')) left += text[0];
    }
    return FakeTokenizer::Encode(left, options);
  }
};

TEST(PromptEncoder, WhiteSpaceThatAMarkSwallowsIsSwallowedInTheNextPartToo) {
  const SwallowingTokenizer tokenizer;
  PromptEncoder encoder(tokenizer);
  for (const char* content : {" \n hi \n", "hi", " \n ", "\u3000hi", ""}) {
    const PromptParts parts = {{.text = "<|user|>\n ", .is_mark = true},
                               {.text = content},
                               {.text = "<|end|>\n", .is_mark = true}};
    std::string whole;
    for (const PromptPart& part : parts) whole += part.text == "\u3000hi" ? "hi" : part.text;
    EXPECT_EQ(encoder.Encode(parts), tokenizer.Encode(whole, {.add_special_tokens = false}))
        << content;
  }
  // After a mark that swallows nothing, all is kept.
  EXPECT_THAT(encoder.Encode({{.text = "<|end|>", .is_mark = true}, {.text = "\nhi"}}),
              ElementsAre(Control(tokenizer, "<|end|>"), '\n', 'h', 'i'));
}

TEST(PromptEncoder, FindsControlWords) {
  const FakeTokenizer tokenizer = ChatTokenizer();
  const PromptEncoder encoder(tokenizer);
  EXPECT_EQ(encoder.ControlToken("<|user|>"), Control(tokenizer, "<|user|>"));
  EXPECT_EQ(encoder.ControlToken("<|user|"), std::nullopt);
  EXPECT_EQ(encoder.ControlToken(""), std::nullopt);
  const auto word = encoder.FindControlWord("<<|end|>");
  ASSERT_TRUE(word);
  EXPECT_EQ(word->begin, 1U);
  EXPECT_EQ(word->bytes, 3U);  // "<|e"
  EXPECT_EQ(encoder.FindControlWord("<|usr|> <|"), std::nullopt);
  EXPECT_EQ(encoder.ControlWordAtBegin("<|end|>x"), "<|end|>");  // the longest
  EXPECT_EQ(encoder.ControlWordAtBegin("x<|end|>"), std::nullopt);
}

TEST(PromptEncoder, AWordThatCannotBeCutIsLeftOut) {
  const FakeTokenizer tokenizer({}, FakeTokenizer::Partial::kRaw, true, {"\xC2\xA7"});
  PromptEncoder encoder(tokenizer);
  EXPECT_THAT(encoder.EncodeText("a\xC2\xA7z"), ElementsAre('a', 'z'));
}

RC_GTEST_PROP(PromptEncoder, NoTextMakesAControlToken, ()) {
  const FakeTokenizer tokenizer = ChatTokenizer();
  PromptEncoder encoder(tokenizer);
  const auto words = rc::gen::element<std::string>("<|end|>", "<|user|>", "<|e", "<", "|",
                                                   "<|<|end|>", "end|>", " the", "x", "\xC3\xA9");
  std::string text;
  for (const std::string& word : *rc::gen::container<std::vector<std::string>>(words)) text += word;
  const std::vector<TokenId> tokens = encoder.EncodeText(text);
  RC_ASSERT(CountControls(tokenizer, tokens) == 0);
  RC_ASSERT(tokenizer.Decode(tokens) == text);
}

RC_GTEST_PROP(PromptEncoder, WithoutControlWordsItIsTheTokenizer, ()) {
  const FakeTokenizer tokenizer = ChatTokenizer();
  PromptEncoder encoder(tokenizer);
  const std::string text = *ValidText();
  RC_ASSERT(encoder.EncodeText(text) == tokenizer.Encode(text, {.add_special_tokens = false}));
}

}  // namespace
}  // namespace carousel
