// SPDX-License-Identifier: Apache-2.0
// Text of any length, even endless, in pieces that can be tokenized one by one.
#pragma once

#include <cstddef>
#include <cstdint>
#include <exception>
#include <optional>
#include <string>
#include <string_view>

#include "text/byte_source.h"
#include "text/text_mender.h"

namespace carousel {

struct TextPiecesOptions {
  // The most bytes of a piece, as long as the text has places to cut.
  std::size_t piece_bytes = 64 << 10;
  // Where a text without such a place is cut at the next character all the same: memory stays
  // bounded, and the tokens at that one place may differ from those of the whole text.
  std::size_t max_piece_bytes = 1 << 20;
};

// Reads a source in pieces. Each piece but the last ends before a space that follows a non-space
// (where Tokenizer::CanEncodeInPieces allows a cut); in text without spaces, before a newline that
// follows a non-space. Joined, the pieces are the text, in which what is no UTF-8 is replaced as
// TextMender does.
//
// A piece is handed on as soon as it can be: a slow source is not waited for to fill piece_bytes.
class TextPieces {
 public:
  // `source` must outlive this. 4 <= piece_bytes <= max_piece_bytes.
  TextPieces(ByteSource& source, TextPiecesOptions options);

  // The next piece, never empty. nullopt: the end, or woken while waiting (see interrupted()). What
  // the source throws is thrown once all that came before it has been handed on; after that the
  // text has ended.
  std::optional<std::string> Next();
  // Whether the last nullopt means that the source was woken and not that the text has ended.
  bool interrupted() const { return interrupted_; }
  // How many sequences of bytes were replaced in what has been read.
  std::int64_t replaced() const { return mender_.replaced(); }

 private:
  bool Fill(std::size_t limit);
  std::size_t FindCut(std::size_t limit, char before) const;
  std::string Take(std::size_t bytes);

  ByteSource& source_;
  TextPiecesOptions options_;
  TextMender mender_;
  std::string bytes_;   // of one read
  std::string buffer_;  // whole characters
  bool at_end_ = false;
  bool interrupted_ = false;
  std::exception_ptr failure_;  // of the source, still to be thrown
};

// The whole of a source. nullopt: woken while waiting. Throws carousel::Error (kInvalidArgument,
// field "text") when there are more than `max_bytes`.
std::optional<std::string> ReadWhole(ByteSource& source, std::size_t max_bytes);
// The same of one that must be text (ValidateText, field "text").
std::optional<std::string> ReadWholeText(ByteSource& source, std::size_t max_bytes);

// Throws carousel::Error (kInvalidArgument, `field`) when `text` is not UTF-8 or contains NUL.
// `offset` is where it begins in what the user gave.
void ValidateText(std::string_view text, std::string_view field, std::uint64_t offset);

}  // namespace carousel
