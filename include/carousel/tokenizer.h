// SPDX-License-Identifier: Apache-2.0
// Text to tokens and back. src/openvino implements it for the tokenizers that come with models;
// embedders may bring their own.
#pragma once

#include <span>
#include <string>
#include <string_view>
#include <vector>

#include "carousel/types.h"

namespace carousel {

struct EncodeOptions {
  // Adds what the model's tokenizer puts around a text on its own (a beginning-of-text token, for
  // instance).
  bool add_special_tokens = true;
  // The text goes on where another one ended, so that nothing is put between the two. SentencePiece
  // tokenizers otherwise put a space in front of a text. Only without special tokens.
  bool continues_text = false;
};

// A token that steers the model and is no text, such as the end of a turn.
struct ControlToken {
  TokenId token = 0;
  std::string text;  // how it is written; never empty
};

class Tokenizer {
 public:
  virtual ~Tokenizer() = default;
  // Any length of valid UTF-8, never truncated; empty text gives only special tokens, or nothing.
  // Where the text of a control token stands, it becomes that token (PromptEncoder keeps users'
  // texts from this).
  // Throws carousel::Error (kInvalidArgument, field "text") with the byte offset for invalid UTF-8
  // or NUL.
  virtual std::vector<TokenId> Encode(std::string_view text,
                                      const EncodeOptions& options) const = 0;
  // May end inside a UTF-8 character (bytes as they are, or U+FFFD for them). Special tokens are
  // left out.
  virtual std::string Decode(std::span<const TokenId> tokens) const = 0;
  // True when text may be cut before any space that follows a non-space, each piece encoded on its
  // own (without special tokens) and the tokens joined, with the same result. Endless input relies
  // on it.
  virtual bool CanEncodeInPieces() const = 0;
  // All of the vocabulary's, in no order. A token without a text is left out.
  virtual const std::vector<ControlToken>& control_tokens() const = 0;
};

}  // namespace carousel
