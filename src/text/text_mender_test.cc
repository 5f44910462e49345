// SPDX-License-Identifier: Apache-2.0
#include "text/text_mender.h"

#include <gtest/gtest.h>
#include <rapidcheck/gtest.h>

#include "testing/random_text.h"
#include "text/mended_whole.h"

namespace carousel {
namespace {

MendedText Mended(const std::vector<std::string>& parts) {
  TextMender mender;
  std::string text;
  for (const std::string& part : parts) mender.Add(part, &text);
  mender.End(&text);
  return {text, mender.replaced()};
}

TEST(TextMender, ReplacesMaximalSubparts) {
  const std::string u(kReplacementCharacter);
  EXPECT_EQ(Mended({"caf\xE9!"}).text, "caf" + u + "!");
  EXPECT_EQ(Mended({"\xE1\x80\xE2\xF0\x91\x92\xF1\xBF\x41"}).text, u + u + u + u + "A");
  EXPECT_EQ(Mended({"\xED\xA0\x80"}).replaced, 3);
  EXPECT_EQ(Mended({"whole \xE2\x82\xAC"}).replaced, 0);
}

TEST(TextMender, ACharacterCutByAReadIsWhole) {
  EXPECT_EQ(Mended({"\xE2", "\x82", "\xAC"}).text, "\xE2\x82\xAC");
  EXPECT_EQ(Mended({"\xE2\x82", "", "\xAC"}).replaced, 0);
  // At the very end nothing can complete it.
  EXPECT_EQ(Mended({"a\xE2", "\x82"}).text, "a" + std::string(kReplacementCharacter));
  // What looked like a beginning was none, and what came next is one.
  EXPECT_EQ(Mended({"\xF0\x9F", "\xE2", "\x82\xAC"}).text,
            std::string(kReplacementCharacter) + "\xE2\x82\xAC");
}

TEST(TextMender, ARunOfNulsIsOneSequence) {
  const std::string u(kReplacementCharacter);
  EXPECT_EQ(Mended({"a" + std::string(64, '\0') + "b"}).text, "a" + u + "b");
  EXPECT_EQ(Mended({std::string(3, '\0'), std::string(3, '\0')}).replaced, 1);
  EXPECT_EQ(Mended({std::string(2, '\0'), "\xFF", std::string(2, '\0')}).replaced, 3);
}

RC_GTEST_PROP(TextMender, DoesNotDependOnTheParts, ()) {
  const auto parts = *rc::gen::container<std::vector<std::string>>(AnyBytes());
  std::string whole;
  for (const std::string& part : parts) whole += part;
  const MendedText mended = Mended(parts);
  const MendedText expected = MendedWhole(whole);
  RC_ASSERT(mended.text == expected.text);
  RC_ASSERT(mended.replaced == expected.replaced);
  RC_ASSERT(!FindInvalidUtf8(mended.text));
}

}  // namespace
}  // namespace carousel
