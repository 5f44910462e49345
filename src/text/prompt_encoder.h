// SPDX-License-Identifier: Apache-2.0
// Prompts to tokens, so that nobody can write a control token: what people write is text, whatever
// words are in it.
#pragma once

#include <cstddef>
#include <map>
#include <optional>
#include <set>
#include <string>
#include <string_view>
#include <unordered_set>
#include <vector>

#include "carousel/tokenizer.h"
#include "carousel/types.h"
#include "text/prompt_part.h"

namespace carousel {

// Tokenizers take the text of a control token for the token itself, wherever it stands. So each
// part of a prompt is encoded apart, and in contents a control word is cut in two where that costs
// fewest tokens. A text's encoding never crosses its own tokens' borders, so a cut at one of them
// changes nothing; most control words have one inside.
//
// Some tokenizers (Phi-3's) swallow white space after a control token. A part that follows on one
// is then encoded without the white space that it begins with, as it would be in the whole text.
//
// For one thread at a time: it remembers where words are cut.
class PromptEncoder {
 public:
  // `tokenizer` must outlive this.
  explicit PromptEncoder(const Tokenizer& tokenizer);

  // The parts' tokens, without what the tokenizer puts around a text. `continues_text`: the first
  // part follows on text that was read before. Throws as Tokenizer::Encode.
  std::vector<TokenId> Encode(const PromptParts& parts, bool continues_text = false);
  // A text's tokens, none of which is a control token: what is one and cannot be cut is left out.
  std::vector<TokenId> EncodeText(std::string_view text, bool continues_text = false);
  // The token that is written so; nullopt: it is no control token's text.
  std::optional<TokenId> ControlToken(std::string_view text) const;
  // The first control word in `text` that begins at `from` or later, of several there the shortest.
  struct Word {
    std::size_t begin = 0;
    std::size_t bytes = 0;
  };
  std::optional<Word> FindControlWord(std::string_view text, std::size_t from = 0) const;
  // The longest control word that `text` begins with.
  std::optional<std::string_view> ControlWordAtBegin(std::string_view text) const;
  const Tokenizer& tokenizer() const { return tokenizer_; }

 private:
  std::size_t CutOf(std::string_view word);
  bool EndsWithControl(const std::vector<TokenId>& tokens) const;
  bool SwallowsSpaceAfter(TokenId control);

  const Tokenizer& tokenizer_;
  std::map<std::string, TokenId, std::less<>> words_;
  std::unordered_set<TokenId> control_tokens_;
  std::set<std::size_t> lengths_;                         // of words_, in bytes
  std::string first_bytes_;                               // of words_, each once
  std::map<std::string, std::size_t, std::less<>> cuts_;  // found so far
  std::map<TokenId, bool> swallows_;                      // likewise
};

}  // namespace carousel
