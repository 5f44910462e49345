// SPDX-License-Identifier: Apache-2.0
#include "text/incremental_detokenizer.h"

#include <gtest/gtest.h>
#include <rapidcheck/gtest.h>

#include "testing/fake_tokenizer.h"
#include "testing/random_text.h"

namespace carousel {
namespace {

using Partial = FakeTokenizer::Partial;

std::string PushAll(const FakeTokenizer& tokenizer, const std::vector<TokenId>& tokens) {
  IncrementalDetokenizer detokenizer(tokenizer);
  std::string text;
  for (const TokenId token : tokens) {
    const std::string part = detokenizer.Push(token);
    EXPECT_EQ(FindInvalidUtf8(part), std::nullopt);
    text += part;
  }
  return text + detokenizer.Flush();
}

TEST(IncrementalDetokenizer, HoldsACharacterBackUntilItIsWhole) {
  for (const Partial partial :
       {Partial::kRaw, Partial::kReplaceMaximalSubpart, Partial::kReplaceEachByte}) {
    const FakeTokenizer tokenizer({"ok "}, partial);
    IncrementalDetokenizer detokenizer(tokenizer);
    EXPECT_EQ(detokenizer.Push(256), "ok ");
    EXPECT_EQ(detokenizer.Push(0xF0), "");
    EXPECT_EQ(detokenizer.Push(0x9F), "");
    EXPECT_EQ(detokenizer.Push(0x98), "");
    EXPECT_EQ(detokenizer.Push(0x80), "\xF0\x9F\x98\x80");
    EXPECT_EQ(detokenizer.Flush(), "");
  }
}

TEST(IncrementalDetokenizer, FlushGivesUpOnAnUnfinishedCharacter) {
  const FakeTokenizer tokenizer({}, Partial::kRaw);
  IncrementalDetokenizer detokenizer(tokenizer);
  EXPECT_EQ(detokenizer.Push('a'), "a");
  EXPECT_EQ(detokenizer.Push(0xE2), "");
  EXPECT_EQ(detokenizer.Flush(), kReplacementCharacter);
  EXPECT_EQ(detokenizer.Push('b'), "b");
}

TEST(IncrementalDetokenizer, AGenuineReplacementCharacterIsNotLost) {
  const FakeTokenizer tokenizer({std::string(kReplacementCharacter)},
                                Partial::kReplaceMaximalSubpart);
  EXPECT_EQ(PushAll(tokenizer, {256, 'a', 256, 256, 256, 256, 256}),
            "\uFFFDa\uFFFD\uFFFD\uFFFD\uFFFD\uFFFD");
}

// SentencePiece drops the space in front of a text's first word.
class SpaceDroppingTokenizer : public FakeTokenizer {
 public:
  using FakeTokenizer::FakeTokenizer;
  std::string Decode(std::span<const TokenId> tokens) const override {
    const std::string text = FakeTokenizer::Decode(tokens);
    return text.starts_with(' ') ? text.substr(1) : text;
  }
};

TEST(IncrementalDetokenizer, KeepsSpacesThatStandOnlyInsideAText) {
  const SpaceDroppingTokenizer tokenizer({" word"}, Partial::kRaw);
  std::string expected = "word";
  for (int i = 1; i < 100; ++i) expected += " word";
  EXPECT_EQ(PushAll(tokenizer, std::vector<TokenId>(100, 256)), expected);
}

TEST(IncrementalDetokenizer, CostPerTokenDoesNotGrow) {
  for (const TokenId token : {0xF0, 0x80, 0x61, 0x100}) {
    const FakeTokenizer tokenizer({std::string(kReplacementCharacter)}, Partial::kReplaceEachByte);
    PushAll(tokenizer, std::vector<TokenId>(10'000, token));
    EXPECT_LE(tokenizer.longest_decode(), IncrementalDetokenizer::kWindowTokens);
    EXPECT_LE(tokenizer.decode_calls(), 20'001U);
  }
}

RC_GTEST_PROP(IncrementalDetokenizer, PartsJoinToTheWholeText, ()) {
  const auto partial =
      *rc::gen::element(Partial::kRaw, Partial::kReplaceMaximalSubpart, Partial::kReplaceEachByte);
  const auto pieces = *rc::gen::container<std::vector<std::string>>(
      4, rc::gen::nonEmpty(rc::gen::oneOf(ValidText(), AnyBytes())));
  const FakeTokenizer tokenizer(pieces, partial);
  const std::string text = *rc::gen::resize(400, rc::gen::oneOf(ValidText(), AnyBytes()));
  const std::vector<TokenId> tokens = tokenizer.Encode(text, {.add_special_tokens = false});
  RC_ASSERT(PushAll(tokenizer, tokens) == ReplaceInvalidUtf8(tokenizer.Decode(tokens)));
}

RC_GTEST_PROP(IncrementalDetokenizer, AnyTokensGiveValidTextWithinTheWindow, ()) {
  const FakeTokenizer tokenizer({"ab", "\xF0\x9F"}, Partial::kReplaceMaximalSubpart);
  const auto tokens = *rc::gen::container<std::vector<TokenId>>(
      rc::gen::inRange<TokenId>(0, static_cast<TokenId>(tokenizer.vocabulary_size())));
  PushAll(tokenizer, tokens);
  RC_ASSERT(tokenizer.longest_decode() <= IncrementalDetokenizer::kWindowTokens);
}

}  // namespace
}  // namespace carousel
