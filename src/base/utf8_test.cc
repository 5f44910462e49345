// SPDX-License-Identifier: Apache-2.0
#include "base/utf8.h"

#include <gtest/gtest.h>
#include <rapidcheck/gtest.h>

#include "testing/random_text.h"

namespace carousel {
namespace {

TEST(Utf8, ReplacesMaximalSubpartsAsUnicodeShows) {
  // Unicode 15, tables 3-8, 3-9, 3-10 and 3-11.
  const std::string u = std::string(kReplacementCharacter);
  EXPECT_EQ(ReplaceInvalidUtf8("\xC0\xAF\xE0\x80\xBF\xF0\x81\x82\x41"),
            u + u + u + u + u + u + u + u + "A");
  EXPECT_EQ(ReplaceInvalidUtf8("\xED\xA0\x80\xED\xBF\xBF\xED\xAF\x41"),
            u + u + u + u + u + u + u + u + "A");
  EXPECT_EQ(ReplaceInvalidUtf8("\xF4\x91\x92\x93\xFF\x41\x80\xBF\x42"),
            u + u + u + u + u + "A" + u + u + "B");
  EXPECT_EQ(ReplaceInvalidUtf8("\xE1\x80\xE2\xF0\x91\x92\xF1\xBF\x41"), u + u + u + u + "A");
}

TEST(Utf8, ReadsCodePoints) {
  EXPECT_EQ(FirstUtf8Unit("\x7F").code_point, U'\x7F');
  EXPECT_EQ(FirstUtf8Unit("\xC2\x80").code_point, char32_t{0x80});
  EXPECT_EQ(FirstUtf8Unit("\xE2\x82\xAC").code_point, char32_t{0x20AC});
  EXPECT_EQ(FirstUtf8Unit("\xF4\x8F\xBF\xBF").code_point, char32_t{0x10FFFF});
}

TEST(Utf8, TellsWhereATextIsNotValid) {
  EXPECT_EQ(FindInvalidUtf8("caf\xC3\xA9"), std::nullopt);
  EXPECT_EQ(FindInvalidUtf8("caf\xE9!"), 3U);
  EXPECT_EQ(FindInvalidUtf8("ab\xF0\x9F\x98"), 2U);
}

TEST(Utf8, CountsTheBytesOfAnUnfinishedCharacter) {
  EXPECT_EQ(IncompleteTailBytes(""), 0U);
  EXPECT_EQ(IncompleteTailBytes("ab"), 0U);
  EXPECT_EQ(IncompleteTailBytes("ab\xF0\x9F\x98"), 3U);
  EXPECT_EQ(IncompleteTailBytes("ab\xF0\x9F\x98\x80"), 0U);
  EXPECT_EQ(IncompleteTailBytes("\xE2\x82\xC3"), 1U);
  EXPECT_EQ(IncompleteTailBytes("\xF0\x80"), 0U);  // overlong: no continuation can mend it
}

RC_GTEST_PROP(Utf8, ReplacingGivesValidTextAndLeavesValidTextAlone, ()) {
  const std::string bytes = *AnyBytes();
  const std::string replaced = ReplaceInvalidUtf8(bytes);
  RC_ASSERT(!FindInvalidUtf8(replaced));
  RC_ASSERT(ReplaceInvalidUtf8(replaced) == replaced);
  RC_ASSERT((replaced == bytes) == !FindInvalidUtf8(bytes).has_value());
}

RC_GTEST_PROP(Utf8, AnUnfinishedCharacterIsWhatScanningFromTheFrontFinds, ()) {
  const std::string bytes = *AnyBytes();
  std::string_view rest = bytes;
  std::size_t tail = 0;
  while (!rest.empty()) {
    const Utf8Unit unit = FirstUtf8Unit(rest);
    tail = unit.kind == Utf8Unit::Kind::kIncomplete ? unit.bytes : 0;
    rest.remove_prefix(unit.bytes);
  }
  RC_ASSERT(IncompleteTailBytes(bytes) == tail);
}

}  // namespace
}  // namespace carousel
