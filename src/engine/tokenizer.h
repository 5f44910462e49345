// SPDX-License-Identifier: Apache-2.0
// Text to tokens and back, as the engine's text layer needs it. src/openvino implements it.
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
};

class Tokenizer {
 public:
  virtual ~Tokenizer() = default;
  // Any length of valid UTF-8, never truncated; empty text gives only special tokens, or nothing.
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
};

}  // namespace carousel
