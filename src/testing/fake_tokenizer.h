// SPDX-License-Identifier: Apache-2.0
// A tokenizer for tests: tokens 0 to 255 are bytes, the next are given texts, then comes one
// without a text, then control tokens.
#pragma once

#include <algorithm>
#include <cstdint>
#include <string>
#include <utility>
#include <vector>

#include "base/utf8.h"
#include "carousel/tokenizer.h"

namespace carousel {

class FakeTokenizer : public Tokenizer {
 public:
  // How Decode shows bytes that make no whole character, as tokenizers differ in it.
  enum class Partial { kRaw, kReplaceMaximalSubpart, kReplaceEachByte };

  FakeTokenizer(std::vector<std::string> pieces, Partial partial, bool in_pieces = true,
                const std::vector<std::string>& controls = {})
      : pieces_(std::move(pieces)), partial_(partial), in_pieces_(in_pieces) {
    for (const std::string& text : controls)
      controls_.push_back({special_token() + 1 + static_cast<TokenId>(controls_.size()), text});
  }

  TokenId special_token() const { return static_cast<TokenId>(256 + pieces_.size()); }
  std::int64_t vocabulary_size() const { return special_token() + 1 + std::ssize(controls_); }

  // The longest piece that fits, else a byte; the special token in front where special tokens are
  // wanted.
  std::vector<TokenId> Encode(std::string_view text, const EncodeOptions& options) const override {
    std::vector<TokenId> tokens;
    if (options.add_special_tokens) tokens.push_back(special_token());
    while (!text.empty()) {
      std::size_t bytes = 1;
      auto token = static_cast<TokenId>(static_cast<unsigned char>(text[0]));
      for (std::size_t i = 0; i < pieces_.size(); ++i) {
        if (pieces_[i].size() < bytes || !text.starts_with(pieces_[i])) continue;
        bytes = pieces_[i].size();
        token = static_cast<TokenId>(256 + i);
      }
      for (const ControlToken& control : controls_) {
        if (control.text.size() < bytes || !text.starts_with(control.text)) continue;
        bytes = control.text.size();
        token = control.token;
      }
      tokens.push_back(token);
      text.remove_prefix(bytes);
    }
    return tokens;
  }

  std::string Decode(std::span<const TokenId> tokens) const override {
    std::string bytes;
    for (const TokenId token : tokens) {
      if (token < 256)
        bytes += static_cast<char>(token);
      else if (token < special_token())
        bytes += pieces_[static_cast<std::size_t>(token - 256)];
    }
    ++decode_calls_;
    longest_decode_ = std::max(longest_decode_, tokens.size());
    if (partial_ == Partial::kRaw) return bytes;
    if (partial_ == Partial::kReplaceMaximalSubpart) return ReplaceInvalidUtf8(bytes);
    return ReplaceEachByte(bytes);
  }

  bool CanEncodeInPieces() const override { return in_pieces_; }
  const std::vector<ControlToken>& control_tokens() const override { return controls_; }

  std::size_t longest_decode() const { return longest_decode_; }
  std::size_t decode_calls() const { return decode_calls_; }

 private:
  static std::string ReplaceEachByte(std::string_view text) {
    std::string out;
    while (!text.empty()) {
      const Utf8Unit unit = FirstUtf8Unit(text);
      if (unit.kind == Utf8Unit::Kind::kCharacter) {
        out += text.substr(0, unit.bytes);
      } else {
        for (std::size_t i = 0; i < unit.bytes; ++i) out += kReplacementCharacter;
      }
      text.remove_prefix(unit.bytes);
    }
    return out;
  }

  std::vector<std::string> pieces_;
  Partial partial_;
  bool in_pieces_;
  std::vector<ControlToken> controls_;
  mutable std::size_t longest_decode_ = 0;
  mutable std::size_t decode_calls_ = 0;
};

}  // namespace carousel
