// SPDX-License-Identifier: Apache-2.0
#include "text/incremental_detokenizer.h"

#include <algorithm>

#include "base/utf8.h"

namespace carousel {
namespace {

// How far `text` is certain whatever tokens follow. Tokenizers show the beginning of a character as
// it is, as one U+FFFD, or as one for each of its bytes: of a run of U+FFFD at the end, up to three
// may still turn into a character.
std::size_t SettledBytes(std::string_view text) {
  if (const std::size_t tail = IncompleteTailBytes(text); tail > 0) return text.size() - tail;
  std::size_t settled = text.size();
  for (int i = 0; i < 3 && text.substr(0, settled).ends_with(kReplacementCharacter); ++i)
    settled -= kReplacementCharacter.size();
  return settled;
}

}  // namespace

std::string IncrementalDetokenizer::Push(TokenId token) {
  window_.push_back(token);
  const std::string text = tokenizer_.Decode(window_);
  std::string out = Emit(text, SettledBytes(text));
  if (window_.size() >= kWindowTokens) {
    const std::size_t pending_begin = std::min(emitted_bytes_, text.size());
    out += ShortenWindow(std::string_view(text).substr(pending_begin));
  }
  return out;
}

std::string IncrementalDetokenizer::Flush() {
  const std::string text = tokenizer_.Decode(window_);
  std::string out = Emit(text, text.size());
  window_.clear();
  emitted_bytes_ = 0;
  return out;
}

// The part of Decode(window_) in [emitted_bytes_, end), if there is any.
std::string IncrementalDetokenizer::Emit(std::string_view text, std::size_t end) {
  if (end <= emitted_bytes_) return "";
  std::string out = ReplaceInvalidUtf8(text.substr(emitted_bytes_, end - emitted_bytes_));
  emitted_bytes_ = end;
  return out;
}

// Keeps the newest tokens only. `pending`, the text still held back, is made by the last few of
// them; where it is not (tokens without text stand between them), it is given up as it is, so that
// the window stays bounded.
std::string IncrementalDetokenizer::ShortenWindow(std::string_view pending) {
  window_.erase(window_.begin(), window_.end() - kContextTokens);
  const std::string text = tokenizer_.Decode(window_);
  if (text.ends_with(pending)) {
    emitted_bytes_ = text.size() - pending.size();
    return "";
  }
  emitted_bytes_ = text.size();
  return ReplaceInvalidUtf8(pending);
}

}  // namespace carousel
