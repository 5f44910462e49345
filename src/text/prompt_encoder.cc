// SPDX-License-Identifier: Apache-2.0
#include "text/prompt_encoder.h"

#include <algorithm>
#include <utility>

#include "base/check.h"
#include "base/utf8.h"

namespace carousel {
namespace {

void Append(const std::vector<TokenId>& more, std::vector<TokenId>* tokens) {
  tokens->insert(tokens->end(), more.begin(), more.end());
}

// Spaces at the end of a mark belong to the word that follows them: tokenizers write " word" as one
// token. Takes them off.
std::string TakeSpacesAtEnd(std::string* mark) {
  const std::size_t end = mark->find_last_not_of(' ');
  const std::size_t kept = end == std::string::npos ? 0 : end + 1;
  std::string spaces = mark->substr(kept);
  mark->resize(kept);
  return spaces;
}

std::string_view WithoutSpaceAtBegin(std::string_view text) {
  while (!text.empty()) {
    const Utf8Unit unit = FirstUtf8Unit(text);
    if (unit.kind != Utf8Unit::Kind::kCharacter || !IsSpace(unit.code_point)) break;
    text.remove_prefix(unit.bytes);
  }
  return text;
}

}  // namespace

PromptEncoder::PromptEncoder(const Tokenizer& tokenizer) : tokenizer_(tokenizer) {
  for (const carousel::ControlToken& control : tokenizer.control_tokens()) {
    control_tokens_.insert(control.token);
    words_.emplace(control.text, control.token);
    lengths_.insert(control.text.size());
    if (first_bytes_.find(control.text[0]) == std::string::npos) first_bytes_ += control.text[0];
  }
}

std::optional<TokenId> PromptEncoder::ControlToken(std::string_view text) const {
  const auto found = words_.find(text);
  return found == words_.end() ? std::nullopt : std::optional(found->second);
}

std::optional<PromptEncoder::Word> PromptEncoder::FindControlWord(std::string_view text,
                                                                  std::size_t from) const {
  for (std::size_t at = text.find_first_of(first_bytes_, from); at != std::string_view::npos;
       at = text.find_first_of(first_bytes_, at + 1)) {
    for (const std::size_t bytes : lengths_) {
      if (bytes > text.size() - at) break;
      if (words_.contains(text.substr(at, bytes))) return Word{.begin = at, .bytes = bytes};
    }
  }
  return std::nullopt;
}

std::optional<std::string_view> PromptEncoder::ControlWordAtBegin(std::string_view text) const {
  for (auto bytes = lengths_.rbegin(); bytes != lengths_.rend(); ++bytes) {
    if (*bytes <= text.size() && words_.contains(text.substr(0, *bytes)))
      return text.substr(0, *bytes);
  }
  return std::nullopt;
}

bool PromptEncoder::EndsWithControl(const std::vector<TokenId>& tokens) const {
  return !tokens.empty() && control_tokens_.contains(tokens.back());
}

bool PromptEncoder::SwallowsSpaceAfter(TokenId control) {
  if (const auto known = swallows_.find(control); known != swallows_.end()) return known->second;
  const auto& all = tokenizer_.control_tokens();
  const auto found = std::find_if(all.begin(), all.end(),
                                  [&](const auto& other) { return other.token == control; });
  const bool swallows =
      found != all.end() &&
      tokenizer_.Encode(found->text + "\n ", {.add_special_tokens = false}).size() == 1;
  swallows_.emplace(control, swallows);
  return swallows;
}

// Where a word is cut: behind one of its characters, so that the two pieces are text and have as
// few tokens as can be. A word of one character cannot be cut; 0 then.
std::size_t PromptEncoder::CutOf(std::string_view word) {
  if (const auto known = cuts_.find(word); known != cuts_.end()) return known->second;
  const auto is_text = [&](const std::vector<TokenId>& tokens) {
    return std::none_of(tokens.begin(), tokens.end(),
                        [&](TokenId token) { return control_tokens_.contains(token); });
  };
  std::size_t best = 0;
  std::size_t fewest = 0;
  for (std::size_t cut = FirstUtf8Unit(word).bytes; cut < word.size();
       cut += FirstUtf8Unit(word.substr(cut)).bytes) {
    const auto left = tokenizer_.Encode(word.substr(0, cut), {.add_special_tokens = false});
    const auto right =
        tokenizer_.Encode(word.substr(cut), {.add_special_tokens = false, .continues_text = true});
    if (!is_text(left) || !is_text(right)) continue;
    if (best != 0 && left.size() + right.size() >= fewest) continue;
    best = cut;
    fewest = left.size() + right.size();
  }
  cuts_.emplace(word, best);
  return best;
}

std::vector<TokenId> PromptEncoder::EncodeText(std::string_view text, bool continues_text) {
  std::vector<TokenId> tokens;
  const auto add = [&](std::string_view piece) {
    if (piece.empty()) return;
    auto more =
        tokenizer_.Encode(piece, {.add_special_tokens = false, .continues_text = continues_text});
    std::erase_if(more, [&](TokenId token) { return control_tokens_.contains(token); });
    Append(more, &tokens);
    continues_text = true;
  };
  std::size_t begin = 0;
  std::size_t from = 0;
  while (const std::optional<Word> word = FindControlWord(text, from)) {
    const std::size_t cut = CutOf(text.substr(word->begin, word->bytes));
    from = word->begin + std::max<std::size_t>(cut, 1);
    if (cut == 0) continue;
    add(text.substr(begin, from - begin));
    begin = from;
  }
  add(text.substr(begin));
  return tokens;
}

std::vector<TokenId> PromptEncoder::Encode(const PromptParts& parts, bool continues_text) {
  std::vector<TokenId> tokens;
  std::string spaces;
  for (std::size_t i = 0; i < parts.size(); ++i) {
    std::string text = std::exchange(spaces, "") + parts[i].text;
    const bool continues = tokens.empty() ? continues_text : !EndsWithControl(tokens);
    if (EndsWithControl(tokens) && SwallowsSpaceAfter(tokens.back()))
      text.erase(0, text.size() - WithoutSpaceAtBegin(text).size());
    if (!parts[i].is_mark) {
      Append(EncodeText(text, continues), &tokens);
      continue;
    }
    if (i + 1 < parts.size()) spaces = TakeSpacesAtEnd(&text);
    Append(tokenizer_.Encode(text, {.add_special_tokens = false, .continues_text = continues}),
           &tokens);
  }
  return tokens;
}

}  // namespace carousel
