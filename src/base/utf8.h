// SPDX-License-Identifier: Apache-2.0
// UTF-8 (Unicode 15, table 3-7), one unit at a time.
#pragma once

#include <cstddef>
#include <optional>
#include <string>
#include <string_view>

namespace carousel {

inline constexpr std::string_view kReplacementCharacter = "\xEF\xBF\xBD";  // U+FFFD

// What stands at the front of a text.
struct Utf8Unit {
  enum class Kind {
    kCharacter,  // a whole character
    kInvalid,  // bytes that no continuation can make valid; the maximal subpart that Unicode names
    kIncomplete,  // the text ends inside a character that is valid so far
  };
  Kind kind = Kind::kInvalid;
  std::size_t bytes = 0;    // at least 1
  char32_t code_point = 0;  // of a whole character
};

// `text` must not be empty.
Utf8Unit FirstUtf8Unit(std::string_view text);

// The offset of the first byte that is not part of a whole character; nullopt: all of it is valid.
std::optional<std::size_t> FindInvalidUtf8(std::string_view text);

// Each invalid or incomplete unit becomes one U+FFFD.
std::string ReplaceInvalidUtf8(std::string_view text);

// How many bytes at the end of `text` are the beginning of a character that is not all there: 0
// to 3.
std::size_t IncompleteTailBytes(std::string_view text);

// The White_Space property of Unicode.
bool IsSpace(char32_t code_point);

}  // namespace carousel
