// SPDX-License-Identifier: Apache-2.0
#include "text/text_pieces.h"

#include <fmt/format.h>

#include <algorithm>
#include <utility>

#include "base/check.h"
#include "base/utf8.h"
#include "carousel/error.h"

namespace carousel {
namespace {

// Whether the character that ends just before `end` is white space.
bool EndsWithSpace(std::string_view text, std::size_t end) {
  std::size_t begin = end - 1;
  while (begin > 0 && (static_cast<unsigned char>(text[begin]) & 0xC0U) == 0x80U) --begin;
  return IsSpace(FirstUtf8Unit(text.substr(begin, end - begin)).code_point);
}

// The most bytes at the front of `text`, at most `limit`, that end with a character.
std::size_t WholeCharacters(std::string_view text, std::size_t limit) {
  if (text.size() <= limit) return text.size();
  return limit - IncompleteTailBytes(text.substr(0, limit));
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
    if (at_end_ && buffer_.empty()) {
      if (failure_) std::rethrow_exception(std::exchange(failure_, nullptr));
      return std::nullopt;
    }
    if (at_end_ && buffer_.size() <= options_.piece_bytes) return Take(buffer_.size());
    if (const std::size_t cut = FindCut(options_.piece_bytes, ' '); cut > 0) return Take(cut);
    const bool full = buffer_.size() >= options_.piece_bytes;
    if (full) {
      const std::size_t most = WholeCharacters(buffer_, options_.max_piece_bytes);
      if (const std::size_t cut = FindCut(most, ' '); cut > 0) return Take(cut);
      if (const std::size_t cut = FindCut(most, '\n'); cut > 0) return Take(cut);
      if (at_end_ || buffer_.size() >= options_.max_piece_bytes) return Take(most);
    }
    if (!Fill(full ? options_.max_piece_bytes : options_.piece_bytes)) {
      interrupted_ = true;
      return std::nullopt;
    }
  }
}

// One read, of no more than fills the buffer to `limit` bytes; replacement characters, which are
// longer than what they stand for, may go beyond. False: woken while waiting.
bool TextPieces::Fill(std::size_t limit) {
  CAROUSEL_CHECK_LT(buffer_.size(), limit);
  bytes_.resize(std::min(limit - buffer_.size(), options_.piece_bytes));
  std::optional<std::size_t> count;
  try {
    count = source_.Read(bytes_);
  } catch (...) {
    failure_ = std::current_exception();
    count = 0;
  }
  if (!count) return false;
  mender_.Add(std::string_view(bytes_).substr(0, *count), &buffer_);
  at_end_ = *count == 0;
  if (at_end_) mender_.End(&buffer_);
  return true;
}

// The last place within `limit` bytes before a `before` that follows a non-space; 0: none.
std::size_t TextPieces::FindCut(std::size_t limit, char before) const {
  const std::string_view text = std::string_view(buffer_).substr(0, limit);
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
  return piece;
}

std::optional<std::string> ReadWhole(ByteSource& source, std::size_t max_bytes) {
  std::string text;
  while (true) {
    constexpr std::size_t kReadBytes = 1 << 16;
    const std::size_t old_size = text.size();
    text.resize(old_size + kReadBytes);
    const auto count = source.Read(std::span<char>(text).subspan(old_size));
    text.resize(old_size + count.value_or(0));
    if (!count) return std::nullopt;
    if (*count == 0) return text;
    if (text.size() > max_bytes)
      throw Error(ErrorCode::kInvalidArgument, "text",
                  fmt::format("has more than {} bytes, the most that is read at once; give less",
                              max_bytes));
  }
}

std::optional<std::string> ReadWholeText(ByteSource& source, std::size_t max_bytes) {
  std::optional<std::string> text = ReadWhole(source, max_bytes);
  if (text) ValidateText(*text, "text", 0);
  return text;
}

}  // namespace carousel
