// SPDX-License-Identifier: Apache-2.0
#include "cli/token_stream.h"

#include <algorithm>
#include <utility>

#include "carousel/error.h"
#include "text/utf8.h"

namespace carousel {

PeekedSource::PeekedSource(std::unique_ptr<ByteSource> source) : source_(std::move(source)) {
  constexpr std::size_t kBytes = 64 << 10;
  // A read may end inside a character; what follows then tells whether it is one.
  bool at_end = false;
  while (!at_end && (first_.empty() || IncompleteTailBytes(first_) > 0)) {
    const std::size_t old_size = first_.size();
    first_.resize(old_size + kBytes);
    const std::size_t bytes = source_->Read(std::span<char>(first_).subspan(old_size)).value_or(0);
    first_.resize(old_size + bytes);
    at_end = bytes == 0;
  }
  if (first_.empty()) throw Error(ErrorCode::kInvalidArgument, "text", "is empty; give some text");
  ValidateText(first_, "text", 0);
}

std::optional<std::size_t> PeekedSource::Read(std::span<char> buffer) {
  if (first_.empty()) return source_->Read(buffer);
  const std::size_t bytes = first_.copy(buffer.data(), buffer.size());
  first_.erase(0, bytes);
  return bytes;
}

TokenStream::TokenStream(ByteSource& source, const Tokenizer& tokenizer)
    : source_(source), tokenizer_(tokenizer), pieces_(source, {}) {}

std::optional<std::vector<TokenId>> TokenStream::Next() {
  while (true) {
    const std::optional<std::string> text = NextText();
    if (!text) return std::nullopt;
    std::vector<TokenId> tokens = std::exchange(at_first_, false)
                                      ? EncodeFirst(*text)
                                      : tokenizer_.Encode(*text, {.add_special_tokens = false});
    if (!tokens.empty()) return tokens;
  }
}

std::optional<std::string> TokenStream::NextText() {
  // A tokenizer that has to see the whole text at once gets no more than memory can be expected to
  // hold.
  constexpr std::size_t kMaxWholeTextBytes = std::size_t{256} << 20;
  if (at_end_) return std::nullopt;
  std::optional<std::string> text;
  if (tokenizer_.CanEncodeInPieces()) {
    text = pieces_.Next();
    interrupted_ = pieces_.interrupted();
  } else {
    text = ReadWholeText(source_, kMaxWholeTextBytes);
    interrupted_ = !text.has_value();
    at_end_ = true;
    if (text && text->empty()) text.reset();
  }
  return text;
}

// The special tokens in front of a text belong to a stream; those behind it would stand in its
// middle.
std::vector<TokenId> TokenStream::EncodeFirst(const std::string& text) const {
  std::vector<TokenId> plain = tokenizer_.Encode(text, {.add_special_tokens = false});
  std::vector<TokenId> special = tokenizer_.Encode(text, {.add_special_tokens = true});
  const auto inside = std::search(special.begin(), special.end(), plain.begin(), plain.end());
  if (inside == special.end()) return plain;
  special.resize(static_cast<std::size_t>(inside - special.begin()) + plain.size());
  return special;
}

}  // namespace carousel
