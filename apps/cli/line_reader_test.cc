// SPDX-License-Identifier: Apache-2.0
#include "cli/line_reader.h"

#include <gtest/gtest.h>

#include <vector>

#include "testing/string_source.h"

namespace carousel {
namespace {

// The messages of a script, whatever the reads.
std::vector<std::string> Messages(const std::string& script) {
  std::vector<std::string> messages;
  for (const std::size_t read_bytes : {std::size_t{1}, std::size_t{2}, std::size_t{1000}}) {
    const auto reader = MakeScriptReader(
        std::make_unique<StringSource>(script, std::vector<std::size_t>{read_bytes}));
    std::vector<std::string> read;
    while (true) {
      const InputLine line = ReadMessage(reader.get());
      if (line.kind == InputLine::Kind::kEnd) break;
      read.push_back(line.text);
    }
    EXPECT_TRUE(messages.empty() || read == messages) << "in reads of " << read_bytes;
    messages = read;
  }
  return messages;
}

using Strings = std::vector<std::string>;

TEST(ScriptReader, ReadsLines) {
  EXPECT_EQ(Messages("one\ntwo\n"), (Strings{"one", "two"}));
  EXPECT_EQ(Messages("one\n\ntwo"), (Strings{"one", "", "two"}));
  EXPECT_EQ(Messages(""), Strings{});
  EXPECT_EQ(Messages("two \\\nplus two\\\n?\nnext"), (Strings{"two \nplus two\n?", "next"}));
  EXPECT_EQ(Messages("unfinished\\\n"), (Strings{"unfinished\n"}));
}

TEST(ScriptReader, LinesOfOtherSystemsEndWithTwoCharacters) {
  EXPECT_EQ(Messages("/reset\r\nHello\r\n/exit\r\n"), (Strings{"/reset", "Hello", "/exit"}));
  EXPECT_EQ(Messages("two\\\r\nplus two\r\n"), (Strings{"two\nplus two"}));
  EXPECT_EQ(Messages("/exit\r"), (Strings{"/exit"}));  // cut before its line feed
  // Only one belongs to the line's end, and one inside a line to the line.
  EXPECT_EQ(Messages("a\r\r\nb\rc\n"), (Strings{"a\r", "b\rc"}));
}

TEST(ScriptReader, AByteOrderMarkIsNoText) {
  EXPECT_EQ(Messages("\xEF\xBB\xBF/reset\r\nHi\xEF\xBB\xBF\n"),
            (Strings{"/reset", "Hi\xEF\xBB\xBF"}));
}

}  // namespace
}  // namespace carousel
