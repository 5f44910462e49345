// SPDX-License-Identifier: Apache-2.0
// A text of any length as tokens.
#pragma once

#include <cstdint>
#include <exception>
#include <memory>
#include <optional>
#include <string>
#include <vector>

#include "carousel/tokenizer.h"
#include "carousel/types.h"
#include "text/byte_source.h"
#include "text/text_pieces.h"

namespace carousel {

// A source whose first bytes are read at once, so that a text that is missing, empty or no text at
// all is known before a model is loaded for it.
class PeekedSource : public ByteSource {
 public:
  // Waits for the first bytes, at most 64 KB. Throws carousel::Error (field "text") when there are
  // none, or when there are many and more than one in ten of the characters in them is none: a
  // program, a compressed file, a text in another encoding. Fewer bad bytes are a text's own.
  explicit PeekedSource(std::unique_ptr<ByteSource> source);
  std::optional<std::size_t> Read(std::span<char> buffer) override;

 private:
  std::unique_ptr<ByteSource> source_;
  std::string first_;
};

// Reads a source piece by piece where the tokenizer allows it, else whole. The tokens are those of
// the whole text, behind what the tokenizer puts in front of a text.
class TokenStream {
 public:
  // Both must outlive this.
  TokenStream(ByteSource& source, const Tokenizer& tokenizer);

  // The next tokens, at least one. nullopt: the end, or woken while waiting (see interrupted()).
  // What the source throws comes behind the tokens of all that was read before. Throws
  // carousel::Error (field "text") for a text that is too long for a tokenizer that takes it whole.
  std::optional<std::vector<TokenId>> Next();
  bool interrupted() const { return interrupted_; }
  // How many sequences of bytes that are no UTF-8 were replaced in what has been read.
  std::int64_t replaced() const { return pieces_.replaced(); }

 private:
  std::optional<std::string> NextText();
  std::optional<std::string> WholeText();
  std::vector<TokenId> EncodeFirst(const std::string& text) const;

  const Tokenizer& tokenizer_;
  TextPieces pieces_;
  bool at_first_ = true;
  bool at_end_ = false;
  bool interrupted_ = false;
  std::exception_ptr failure_;  // of the source, still to be thrown
};

}  // namespace carousel
