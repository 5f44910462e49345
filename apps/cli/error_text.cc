// SPDX-License-Identifier: Apache-2.0
#include "cli/error_text.h"

#include <cctype>
#include <string_view>

namespace carousel {
namespace {

// Of a name or of a path: names inside a path are no settings.
bool IsWordCharacter(char letter) {
  return std::isalnum(static_cast<unsigned char>(letter)) != 0 ||
         std::string_view("_/.-").find(letter) != std::string_view::npos;
}

// Names with an underscore are settings and never words: those may be replaced inside a sentence.
// In double quotes stands what somebody wrote, a key of a JSON object above all.
std::string WithFlagNames(std::string_view text, const FieldLabels& labels) {
  std::string out;
  bool quoted = false;
  while (!text.empty()) {
    std::size_t bytes = 0;
    while (bytes < text.size() && IsWordCharacter(text[bytes])) ++bytes;
    const std::string word(text.substr(0, bytes));
    const auto found = labels.find(word);
    const bool replace = !quoted && word.find('_') != std::string::npos && found != labels.end();
    out += replace ? found->second : word;
    text.remove_prefix(bytes);
    if (!text.empty()) {
      if (text.front() == '"') quoted = !quoted;
      out += text.front();
      text.remove_prefix(1);
    }
  }
  return out;
}

}  // namespace

std::string OneLine(std::string_view text) {
  std::string line(text);
  for (char& letter : line) {
    if (static_cast<unsigned char>(letter) < 0x20 || letter == 0x7F) letter = ' ';
  }
  return line;
}

std::string ErrorText(const Error& error, const FieldLabels& labels) {
  const auto label = labels.find(error.field());
  const std::string& name = label == labels.end() ? error.field() : label->second;
  return OneLine(name + ": " + WithFlagNames(error.problem(), labels));
}

int ExitStatus(const Error& error, const FieldLabels& labels) {
  const bool is_flag = labels.contains(error.field());
  return error.code() == ErrorCode::kInvalidArgument && is_flag ? kExitUsage : kExitFailure;
}

}  // namespace carousel
