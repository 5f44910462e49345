// SPDX-License-Identifier: Apache-2.0
#include "answers/token_stream.h"

#include <gtest/gtest.h>
#include <rapidcheck/gtest.h>

#include "carousel/error.h"
#include "testing/fake_tokenizer.h"
#include "testing/random_text.h"
#include "testing/string_source.h"

namespace carousel {
namespace {

// The pieces have no spaces inside, so a text may be cut before any.
FakeTokenizer Tokens(bool in_pieces) {
  return FakeTokenizer({"wo", " word", " a", "b\n"}, FakeTokenizer::Partial::kRaw, in_pieces);
}

std::vector<TokenId> All(TokenStream* stream) {
  std::vector<TokenId> all;
  while (const auto tokens = stream->Next()) all.insert(all.end(), tokens->begin(), tokens->end());
  return all;
}

RC_GTEST_PROP(TokenStream, TokensAreThoseOfTheWholeText, ()) {
  const std::string text = *rc::gen::nonEmpty(rc::gen::resize(500, ValidText()));
  const FakeTokenizer tokenizer = Tokens(*rc::gen::arbitrary<bool>());
  PeekedSource source(std::make_unique<StringSource>(
      text, std::vector<std::size_t>{*rc::gen::inRange<std::size_t>(1, 50)}));
  TokenStream stream(source, tokenizer);
  RC_ASSERT(All(&stream) == tokenizer.Encode(text, {.add_special_tokens = true}));
}

// Puts a token behind a text as well, as encoders for translation do.
class ClosingTokenizer : public FakeTokenizer {
 public:
  using FakeTokenizer::FakeTokenizer;
  std::vector<TokenId> Encode(std::string_view text, const EncodeOptions& options) const override {
    std::vector<TokenId> tokens = FakeTokenizer::Encode(text, options);
    if (options.add_special_tokens) tokens.push_back(special_token());
    return tokens;
  }
};

TEST(TokenStream, NothingIsPutBehindAText) {
  const ClosingTokenizer tokenizer({}, FakeTokenizer::Partial::kRaw);
  StringSource source("ab", {10});
  TokenStream stream(source, tokenizer);
  EXPECT_EQ(All(&stream), (std::vector<TokenId>{tokenizer.special_token(), 'a', 'b'}));
}

TEST(TokenStream, CountsWhatItReplaces) {
  for (const bool in_pieces : {true, false}) {
    const FakeTokenizer tokenizer = Tokens(in_pieces);
    PeekedSource source(
        std::make_unique<StringSource>("caf\xE9 word\xC3", std::vector<std::size_t>{2}));
    TokenStream stream(source, tokenizer);
    const std::vector<TokenId> tokens = All(&stream);
    EXPECT_EQ(tokens,
              tokenizer.Encode("caf\xEF\xBF\xBD word\xEF\xBF\xBD", {.add_special_tokens = true}));
    EXPECT_EQ(stream.replaced(), 2);
  }
}

TEST(TokenStream, AnErrorComesBehindTheTokensOfWhatWasRead) {
  for (const bool in_pieces : {true, false}) {
    const FakeTokenizer tokenizer = Tokens(in_pieces);
    FailingSource source("wo word", {3});
    TokenStream stream(source, tokenizer);
    std::vector<TokenId> all;
    EXPECT_THROW(while (const auto tokens = stream.Next())
                     all.insert(all.end(), tokens->begin(), tokens->end()),
                 Error);
    EXPECT_EQ(all, tokenizer.Encode("wo word", {.add_special_tokens = true}));
  }
}

void Peek(std::string bytes) {
  PeekedSource source(std::make_unique<StringSource>(std::move(bytes), std::vector<std::size_t>{}));
}

TEST(PeekedSource, RefusesWhatIsNoTextAtOnce) {
  EXPECT_THROW(Peek(""), Error);
  EXPECT_THROW(Peek(std::string(4096, '\0')), Error);
  std::string rubbish;  // as in a compressed file
  for (std::uint32_t i = 1; rubbish.size() < 4096; i = i * 1664525 + 1013904223)
    rubbish += static_cast<char>(i >> 24U);
  try {
    Peek(rubbish);
    ADD_FAILURE() << "accepted";
  } catch (const Error& error) {
    EXPECT_EQ(error.field(), "text");
    EXPECT_EQ(error.problem().rfind("is no text in UTF-8: of its first ", 0), 0U) << error.what();
  }
  std::string wide;  // UTF-16
  for (int i = 0; i < 2048; ++i) wide += std::string("a\0", 2);
  EXPECT_THROW(Peek(wide), Error);
}

TEST(PeekedSource, TakesATextWithSomeBadBytes) {
  EXPECT_NO_THROW(Peek("a\xFF"));
  EXPECT_NO_THROW(Peek(std::string(64, '\0')));  // more may follow
  std::string log = std::string(20000, '\0') + "caf\xE9 ";
  for (int i = 0; i < 200; ++i) log += "a line of a log; ";
  EXPECT_NO_THROW(Peek(log));
  EXPECT_NO_THROW(Peek(log + "\xE2\x82"));
}

}  // namespace
}  // namespace carousel
