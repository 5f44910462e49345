// SPDX-License-Identifier: Apache-2.0
#include "cli/bracketed_paste.h"

#include <gtest/gtest.h>
#include <rapidcheck/gtest.h>

namespace carousel {
namespace {

// Everything that is there: keys as they are, pastes between angle brackets.
std::string Drain(PasteParser* parser) {
  std::string all;
  while (true) {
    if (const auto key = parser->TakeKey()) {
      all += *key;
    } else if (const auto paste = parser->TakePaste()) {
      all += "<" + *paste + ">";
    } else {
      return all;
    }
  }
}

std::string Parsed(const std::string& bytes) {
  PasteParser parser;
  for (const char byte : bytes) parser.Push(byte);
  parser.ReleaseKeys();
  return Drain(&parser);
}

TEST(PasteParser, APasteIsOneTextWithItsLines) {
  EXPECT_EQ(Parsed("ab\x1b[200~one\rtwo\r\nthree\nfour\x1b[201~c\r"),
            "ab<one\ntwo\nthree\nfour>c\r");
  EXPECT_EQ(Parsed("\x1b[200~a\x1b[201~\x1b[200~b\x1b[201~"), "<a><b>");
  EXPECT_EQ(Parsed("\x1b[200~\x1b[201~x"), "x");
  // Escapes inside are text; a carriage return at the very end is a line's.
  EXPECT_EQ(Parsed("\x1b[200~a\x1b[31mb\r\x1b[201~"), "<a\x1b[31mb\n>");
  EXPECT_EQ(Parsed("\x1b[200~caf\xE9\x1b[201~"), "<caf\xEF\xBF\xBD>");
}

TEST(PasteParser, OtherKeysStayAsTheyAre) {
  for (const std::string keys :
       {"plain\r", "\x1b[A", "\x1b[20x", "\x1b\x1b[A", "caf\xC3\xA9", "\x1b[201~"})
    EXPECT_EQ(Parsed(keys), keys);
  EXPECT_EQ(Parsed("\x1b\x1b[200~a\x1b[201~"), "\x1b<a>");
}

TEST(PasteParser, WaitsOnlyWhereAPasteMayBegin) {
  PasteParser parser;
  parser.Push('a');
  EXPECT_FALSE(parser.holds_back());
  parser.Push('\x1b');
  EXPECT_TRUE(parser.holds_back());
  EXPECT_EQ(Drain(&parser), "a");
  parser.ReleaseKeys();
  EXPECT_EQ(Drain(&parser), "\x1b");
  for (const char byte : std::string_view("\x1b[200~text")) parser.Push(byte);
  EXPECT_TRUE(parser.pasting());
  EXPECT_FALSE(parser.holds_back());
  parser.ReleaseKeys();  // a pause in a paste means nothing
  for (const char byte : std::string_view("\x1b[201~")) parser.Push(byte);
  EXPECT_EQ(Drain(&parser), "<text>");
}

RC_GTEST_PROP(PasteParser, KeysAreNeitherLostNorMoved, ()) {
  const auto keys = *rc::gen::container<std::string>(
      rc::gen::element<char>('a', '\x1b', '\x1b', '[', '2', '0', '1', '~'));
  RC_PRE(keys.find("\x1b[200~") == std::string::npos);
  RC_ASSERT(Parsed(keys) == keys);
}

}  // namespace
}  // namespace carousel
