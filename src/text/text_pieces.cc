// SPDX-License-Identifier: Apache-2.0
#include "text/text_pieces.h"

#include <fmt/format.h>

#include <algorithm>

#include "base/check.h"
#include "carousel/error.h"
#include "text/utf8.h"

namespace carousel {
namespace {

// Whether the character that ends just before `end` is white space.
bool EndsWithSpace(std::string_view text, std::size_t end) {
  std::size_t begin = end - 1;
  while (begin > 0 && (static_cast<unsigned char>(text[begin]) & 0xC0U) == 0x80U) --begin;
  return IsSpace(FirstUtf8Unit(text.substr(begin, end - begin)).code_point);
}

}  // namespace

void ValidateText(std::string_view text, std::string_view field, std::uint64_t offset) {
  const auto fail = [&](std::size_t at, std::string_view problem, std::string_view mend) {
    throw Error(ErrorCode::kInvalidArgument, field,
                fmt::format("{} at byte {}; {}", problem, offset + at, mend));
  };
  const std::optional<std::size_t> invalid = FindInvalidUtf8(text);
  const std::size_t nul = text.substr(0, invalid.value_or(text.size())).find('\0');
  if (nul != std::string_view::npos) fail(nul, "has a NUL", "only text can be read");
  if (invalid)
    fail(*invalid,
         fmt::format("is not valid UTF-8 (0x{:02x})", static_cast<unsigned char>(text[*invalid])),
         "convert it to UTF-8 first");
}

TextPieces::TextPieces(ByteSource& source, TextPiecesOptions options)
    : source_(source), options_(options) {
  CAROUSEL_CHECK_GE(options_.piece_bytes, std::size_t{4});
  CAROUSEL_CHECK_GE(options_.max_piece_bytes, options_.piece_bytes);
}

std::optional<std::string> TextPieces::Next() {
  interrupted_ = false;
  while (true) {
    if (at_end_ && buffer_.empty()) return std::nullopt;
    if (at_end_ && buffer_.size() <= options_.piece_bytes) return Take(buffer_.size());
    if (const std::size_t cut = FindCut(options_.piece_bytes, ' '); cut > 0) return Take(cut);
    const bool full = buffer_.size() >= options_.piece_bytes;
    if (full) {
      if (const std::size_t cut = FindCut(valid_bytes_, ' '); cut > 0) return Take(cut);
      if (const std::size_t cut = FindCut(valid_bytes_, '\n'); cut > 0) return Take(cut);
      if (at_end_ || buffer_.size() >= options_.max_piece_bytes) return Take(valid_bytes_);
    }
    if (!Fill(full ? options_.max_piece_bytes : options_.piece_bytes)) {
      interrupted_ = true;
      return std::nullopt;
    }
  }
}

// One read, of no more than fills the buffer to `limit` bytes. False: woken while waiting.
bool TextPieces::Fill(std::size_t limit) {
  const std::size_t old_size = buffer_.size();
  CAROUSEL_CHECK_LT(old_size, limit);
  buffer_.resize(std::min(limit, old_size + options_.piece_bytes));
  const auto count = source_.Read(std::span<char>(buffer_).subspan(old_size));
  buffer_.resize(old_size + count.value_or(0));
  if (!count) return false;
  at_end_ = *count == 0;
  Validate(at_end_);
  return true;
}

// Checks what is new. The beginning of a character at the end of the buffer waits for the rest of
// it.
void TextPieces::Validate(bool at_end) {
  const std::string_view added = std::string_view(buffer_).substr(valid_bytes_);
  const std::size_t tail = at_end ? 0 : IncompleteTailBytes(added);
  ValidateText(added.substr(0, added.size() - tail), "text", buffer_offset_ + valid_bytes_);
  valid_bytes_ = buffer_.size() - tail;
}

// The last place within `limit` bytes before a `before` that follows a non-space; 0: none.
std::size_t TextPieces::FindCut(std::size_t limit, char before) const {
  const std::string_view text = std::string_view(buffer_).substr(0, std::min(limit, valid_bytes_));
  std::size_t at = text.rfind(before);
  while (at != std::string_view::npos && at > 0) {
    if (!EndsWithSpace(text, at)) return at;
    at = text.rfind(before, at - 1);
  }
  return 0;
}

std::string TextPieces::Take(std::size_t bytes) {
  std::string piece = buffer_.substr(0, bytes);
  buffer_.erase(0, bytes);
  valid_bytes_ -= bytes;
  buffer_offset_ += bytes;
  return piece;
}

std::optional<std::string> ReadWholeText(ByteSource& source, std::size_t max_bytes) {
  std::string text;
  while (true) {
    constexpr std::size_t kReadBytes = 1 << 16;
    const std::size_t old_size = text.size();
    text.resize(old_size + kReadBytes);
    const auto count = source.Read(std::span<char>(text).subspan(old_size));
    text.resize(old_size + count.value_or(0));
    if (!count) return std::nullopt;
    if (*count == 0) break;
    if (text.size() > max_bytes)
      throw Error(ErrorCode::kInvalidArgument, "text",
                  fmt::format("has more than {} bytes, the most that is read at once; give less",
                              max_bytes));
  }
  ValidateText(text, "text", 0);
  return text;
}

}  // namespace carousel
