// SPDX-License-Identifier: Apache-2.0
#include "cli/token_stream.h"

#include <gtest/gtest.h>
#include <rapidcheck/gtest.h>

#include <algorithm>

#include "carousel/error.h"
#include "text/fake_tokenizer.h"
#include "text/random_text.h"

namespace carousel {
namespace {

class StringSource : public ByteSource {
 public:
  StringSource(std::string text, std::size_t read_bytes)
      : text_(std::move(text)), read_bytes_(read_bytes) {}
  std::optional<std::size_t> Read(std::span<char> buffer) override {
    const std::size_t bytes =
        text_.copy(buffer.data(), std::min(buffer.size(), read_bytes_), offset_);
    offset_ += bytes;
    return bytes;
  }

 private:
  std::string text_;
  std::size_t read_bytes_;
  std::size_t offset_ = 0;
};

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
  PeekedSource source(std::make_unique<StringSource>(text, *rc::gen::inRange<std::size_t>(1, 50)));
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
  StringSource source("ab", 10);
  TokenStream stream(source, tokenizer);
  EXPECT_EQ(All(&stream), (std::vector<TokenId>{tokenizer.special_token(), 'a', 'b'}));
}

TEST(PeekedSource, RefusesWhatIsNoTextAtOnce) {
  EXPECT_THROW(PeekedSource source(std::make_unique<StringSource>("", 10)), Error);
  EXPECT_THROW(PeekedSource source(std::make_unique<StringSource>("a\xFF", 10)), Error);
  EXPECT_THROW(PeekedSource source(std::make_unique<StringSource>(std::string(1, '\0'), 10)),
               Error);
  EXPECT_THROW(PeekedSource source(std::make_unique<StringSource>("a\xC3", 10)), Error);
  // A character may be cut in two by a read.
  EXPECT_NO_THROW(PeekedSource source(std::make_unique<StringSource>("\xC3\xA9", 1)));
}

}  // namespace
}  // namespace carousel
