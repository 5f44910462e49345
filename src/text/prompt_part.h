// SPDX-License-Identifier: Apache-2.0
// A prompt that is put together from a chat template's marks and from what people wrote.
#pragma once

#include <string>
#include <vector>

namespace carousel {

struct PromptPart {
  std::string text;
  // A mark is the template's: control words in it are control tokens. What people wrote is text,
  // whatever words are in it.
  bool is_mark = false;
  friend bool operator==(const PromptPart&, const PromptPart&) = default;
};

using PromptParts = std::vector<PromptPart>;

// The parts' texts, one behind the other: what the template would have rendered.
inline std::string JoinedText(const PromptParts& parts) {
  std::string text;
  for (const PromptPart& part : parts) text += part.text;
  return text;
}

}  // namespace carousel
