// SPDX-License-Identifier: Apache-2.0
#include "text/text_mender.h"

#include "base/utf8.h"

namespace carousel {

void TextMender::Add(std::string_view bytes, std::string* text) {
  // Those that wait are joined with what can belong to them, so that most bytes are copied once.
  while (!waiting_.empty() && !bytes.empty()) {
    waiting_ += bytes.front();
    bytes.remove_prefix(1);
    if (IncompleteTailBytes(waiting_) == waiting_.size()) continue;
    // The last byte may have begun another character, which waits in turn.
    const std::size_t tail = IncompleteTailBytes(waiting_);
    const std::string whole = waiting_.substr(0, waiting_.size() - tail);
    waiting_.erase(0, whole.size());
    AddWhole(whole, text);
  }
  if (bytes.empty()) return;
  const std::size_t tail = IncompleteTailBytes(bytes);
  waiting_ = bytes.substr(bytes.size() - tail);
  AddWhole(bytes.substr(0, bytes.size() - tail), text);
}

void TextMender::End(std::string* text) {
  if (!waiting_.empty()) Replace(text);
  waiting_.clear();
}

// `bytes` do not end inside a character that more bytes could complete.
void TextMender::AddWhole(std::string_view bytes, std::string* text) {
  std::size_t good = 0;  // bytes at the front that stay as they are
  while (good < bytes.size()) {
    const Utf8Unit unit = FirstUtf8Unit(bytes.substr(good));
    const bool is_nul = bytes[good] == '\0';
    if (unit.kind == Utf8Unit::Kind::kCharacter && !is_nul) {
      good += unit.bytes;
      after_nul_ = false;
      continue;
    }
    text->append(bytes.substr(0, good));
    if (!is_nul || !after_nul_) Replace(text);
    after_nul_ = is_nul;
    bytes.remove_prefix(good + unit.bytes);
    good = 0;
  }
  text->append(bytes);
}

void TextMender::Replace(std::string* text) {
  *text += kReplacementCharacter;
  ++replaced_;
}

}  // namespace carousel
