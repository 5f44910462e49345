// SPDX-License-Identifier: Apache-2.0
// Bytes from outside as text: what is no UTF-8 is replaced and counted, so that an endless text
// does not end at the first bad byte.
#pragma once

#include <cstdint>
#include <string>
#include <string_view>

namespace carousel {

// Bytes in parts of any size; the text does not depend on where they are cut. Each bad sequence
// becomes one U+FFFD: the maximal subparts that Unicode recommends (15.0, section 3.9), and a run
// of NULs, which no tokenizer takes, as one.
class TextMender {
 public:
  // Appends to `text` what `bytes` add to it. The beginning of a character waits for its rest.
  void Add(std::string_view bytes, std::string* text);
  // The bytes have ended: a character whose rest never came is a bad sequence.
  void End(std::string* text);
  // How many sequences were replaced so far.
  std::int64_t replaced() const { return replaced_; }

 private:
  void AddWhole(std::string_view bytes, std::string* text);
  void Replace(std::string* text);

  std::string waiting_;     // 0 to 3 bytes, the beginning of a character
  bool after_nul_ = false;  // the last byte was one
  std::int64_t replaced_ = 0;
};

}  // namespace carousel
