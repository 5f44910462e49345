// SPDX-License-Identifier: Apache-2.0
// A text line by line.
#pragma once

#include <algorithm>
#include <string_view>

namespace carousel {

// The first line of a text that is not empty, without its end, which is taken off the text.
inline std::string_view TakeLine(std::string_view* text) {
  const std::string_view line = text->substr(0, text->find('\n'));
  text->remove_prefix(std::min(text->size(), line.size() + 1));
  return line;
}

// Whether there is nothing in it but spaces.
inline bool IsBlankLine(std::string_view line) {
  return line.find_first_not_of(" \t\r") == std::string_view::npos;
}

}  // namespace carousel
