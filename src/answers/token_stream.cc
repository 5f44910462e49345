// SPDX-License-Identifier: Apache-2.0
#include "answers/token_stream.h"

#include <fmt/format.h>

#include <algorithm>
#include <string_view>
#include <utility>

#include "carousel/error.h"
#include "text/text_mender.h"

namespace carousel {

namespace {

// What is so short may be the beginning of anything.
constexpr std::size_t kFewestBytesToJudge = 1024;

// A bad sequence counts as the character that replaces it, so a stretch of NULs, as a log has where
// it was cut short while it was written, is one.
void RefuseWhatIsNoText(std::string_view bytes) {
  if (bytes.size() < kFewestBytesToJudge) return;
  TextMender mender;
  std::string text;
  mender.Add(bytes, &text);
  const auto characters = std::count_if(text.begin(), text.end(), [](char byte) {
    return (static_cast<unsigned char>(byte) & 0xC0U) != 0x80U;
  });
  if (10 * mender.replaced() <= characters) return;
  throw Error(ErrorCode::kInvalidArgument, "text",
              fmt::format("is no text in UTF-8: of its first {} characters {} are none; convert it "
                          "to UTF-8 first, or name another file",
                          characters, mender.replaced()));
}

}  // namespace

PeekedSource::PeekedSource(std::unique_ptr<ByteSource> source) : source_(std::move(source)) {
  constexpr std::size_t kBytes = 64 << 10;
  first_.resize(kBytes);
  first_.resize(source_->Read(first_).value_or(0));
  if (first_.empty()) throw Error(ErrorCode::kInvalidArgument, "text", "is empty; give some text");
  RefuseWhatIsNoText(first_);
}

std::optional<std::size_t> PeekedSource::Read(std::span<char> buffer) {
  if (first_.empty()) return source_->Read(buffer);
  const std::size_t bytes = first_.copy(buffer.data(), buffer.size());
  first_.erase(0, bytes);
  return bytes;
}

TokenStream::TokenStream(ByteSource& source, const Tokenizer& tokenizer)
    : tokenizer_(tokenizer), pieces_(source, {}) {}

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
  if (failure_) std::rethrow_exception(std::exchange(failure_, nullptr));
  if (at_end_) return std::nullopt;
  std::optional<std::string> text = tokenizer_.CanEncodeInPieces() ? pieces_.Next() : WholeText();
  interrupted_ = pieces_.interrupted();
  return text;
}

// For a tokenizer that has to see all of a text at once.
std::optional<std::string> TokenStream::WholeText() {
  // No more than memory can be expected to hold.
  constexpr std::size_t kMaxWholeTextBytes = std::size_t{256} << 20;
  at_end_ = true;
  std::string whole;
  try {
    while (const std::optional<std::string> piece = pieces_.Next()) {
      whole += *piece;
      if (whole.size() <= kMaxWholeTextBytes) continue;
      throw Error(ErrorCode::kInvalidArgument, "text",
                  fmt::format("has more than {} bytes, the most that this model's tokenizer is "
                              "given at once; give less",
                              kMaxWholeTextBytes));
    }
  } catch (const Error& error) {
    if (whole.empty() || error.code() != ErrorCode::kIo) throw;
    failure_ = std::current_exception();
  }
  if (pieces_.interrupted() || whole.empty()) return std::nullopt;
  return whole;
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
