// SPDX-License-Identifier: Apache-2.0
// The text of an answer while its tokens arrive.
#pragma once

#include <cstddef>
#include <string>
#include <string_view>
#include <vector>

#include "carousel/tokenizer.h"
#include "carousel/types.h"

namespace carousel {

// Turns tokens into text one by one. A token may end inside a character, so text is held back until
// its last character is whole; a token's text may depend on the tokens before it (a leading space
// that stands only inside a text), so each is decoded behind the few that precede it. That window
// is bounded: the cost of a token does not grow with the answer.
//
// What all calls return together, Flush included, is Decode of all the tokens with invalid bytes
// replaced by U+FFFD, provided that a token's text depends on no more than the kContextTokens
// before it.
class IncrementalDetokenizer {
 public:
  static constexpr std::size_t kContextTokens = 8;
  static constexpr std::size_t kWindowTokens = 16;

  // `tokenizer` must outlive this.
  explicit IncrementalDetokenizer(const Tokenizer& tokenizer) : tokenizer_(tokenizer) {}

  // The text that this token settles: valid UTF-8, whole characters, often empty.
  std::string Push(TokenId token);
  // What was held back, now that no more tokens follow. The next Push starts a new text.
  std::string Flush();

 private:
  std::string Emit(std::string_view text, std::size_t end);
  std::string ShortenWindow(std::string_view pending);

  const Tokenizer& tokenizer_;
  std::vector<TokenId> window_;
  std::size_t emitted_bytes_ = 0;  // of Decode(window_)
};

}  // namespace carousel
