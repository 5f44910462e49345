// SPDX-License-Identifier: Apache-2.0
#include "text/stop_strings.h"

#include <gtest/gtest.h>
#include <rapidcheck/gtest.h>

#include "carousel/error.h"
#include "testing/random_text.h"

namespace carousel {
namespace {

TEST(StopStrings, HoldsBackOnlyWhatMayBecomeAStopString) {
  StopStringMatcher matcher({"\nUser:"});
  EXPECT_EQ(matcher.Push("Hello\n"), "Hello");
  EXPECT_EQ(matcher.Push("Us"), "");
  EXPECT_EQ(matcher.Push("ually"), "\nUsually");
  EXPECT_EQ(matcher.Push(" so\nUser: hi"), " so");
  EXPECT_EQ(matcher.matched(), 0U);
  EXPECT_EQ(matcher.Push("more"), "");
  EXPECT_EQ(matcher.Flush(), "");
}

TEST(StopStrings, FlushGivesBackWhatWasHeld) {
  StopStringMatcher matcher({"END"});
  EXPECT_EQ(matcher.Push("the EN"), "the ");
  EXPECT_EQ(matcher.Flush(), "EN");
  EXPECT_EQ(matcher.matched(), std::nullopt);
}

TEST(StopStrings, TheOneThatIsCompleteFirstWins) {
  StopStringMatcher first({"abcd", "bc"});
  EXPECT_EQ(first.Push("xabcd"), "xa");
  EXPECT_EQ(first.matched(), 1U);
  StopStringMatcher longest({"c", "abc", "bc"});
  EXPECT_EQ(longest.Push("xabc"), "x");
  EXPECT_EQ(longest.matched(), 1U);
}

TEST(StopStrings, WithoutStopStringsEverythingPasses) {
  StopStringMatcher matcher({});
  EXPECT_EQ(matcher.Push("abc"), "abc");
  EXPECT_EQ(matcher.Flush(), "");
}

TEST(StopStrings, RefusesEmptyAndInvalidOnes) {
  EXPECT_THROW(StopStringMatcher({"a", ""}), Error);
  EXPECT_THROW(StopStringMatcher({"\xFF"}), Error);
}

RC_GTEST_PROP(StopStrings, TheCutOfTheTextDoesNotMatter, ()) {
  const auto letters = rc::gen::container<std::string>(rc::gen::element('a', 'b', 'c'));
  const auto stops = *rc::gen::container<std::vector<std::string>>(rc::gen::nonEmpty(letters));
  const auto parts = *rc::gen::container<std::vector<std::string>>(letters);
  std::string whole;
  std::string joined;
  StopStringMatcher in_parts(stops);
  for (const std::string& part : parts) {
    whole += part;
    joined += in_parts.Push(part);
  }
  joined += in_parts.Flush();
  StopStringMatcher at_once(stops);
  std::string expected = at_once.Push(whole);
  expected += at_once.Flush();
  RC_ASSERT(joined == expected);
  RC_ASSERT(in_parts.matched().has_value() == at_once.matched().has_value());
  if (at_once.matched()) {
    RC_ASSERT(stops[*in_parts.matched()] == stops[*at_once.matched()]);
    RC_ASSERT(whole.starts_with(joined + stops[*at_once.matched()]));
  } else {
    RC_ASSERT(joined == whole);
  }
}

}  // namespace
}  // namespace carousel
