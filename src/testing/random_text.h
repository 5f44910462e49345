// SPDX-License-Identifier: Apache-2.0
// Texts for property tests: every length of UTF-8 character, white space of several kinds, broken
// bytes.
#pragma once

#include <rapidcheck.h>

#include <string>
#include <vector>

namespace carousel {

// Valid UTF-8, with spaces, newlines and characters of one to four bytes, U+FFFD among them.
inline rc::Gen<std::string> ValidText() {
  const auto unit = rc::gen::element<std::string>(
      "a", "b", "word", " ", " ", "  ", "\n", "\t", ".", "\xC3\xA9", "\xC2\xA0", "\xE2\x82\xAC",
      "\xE3\x80\x80", "\xEF\xBF\xBD", "\xF0\x9F\x98\x80", "\xF4\x8F\xBF\xBF");
  return rc::gen::map(rc::gen::container<std::vector<std::string>>(unit), [](const auto& units) {
    std::string text;
    for (const std::string& part : units) text += part;
    return text;
  });
}

// Any bytes, those that UTF-8 is made of more often.
inline rc::Gen<std::string> AnyBytes() {
  const auto byte =
      rc::gen::oneOf(rc::gen::arbitrary<char>(),
                     rc::gen::element<char>('a', ' ', '\n', '\0', '\x80', '\x98', '\x9F', '\xBF',
                                            '\xC3', '\xE2', '\xED', '\xF0'));
  return rc::gen::container<std::string>(byte);
}

}  // namespace carousel
