// SPDX-License-Identifier: Apache-2.0
#include "text/date_layout.h"

#include <gtest/gtest.h>

namespace carousel {
namespace {

// Friday, 5 January 2029, nine seconds past 14:07.
std::tm Date() {
  std::tm date{};
  date.tm_year = 129;
  date.tm_mday = 5;
  date.tm_wday = 5;
  date.tm_yday = 4;
  date.tm_hour = 14;
  date.tm_min = 7;
  date.tm_sec = 9;
  return date;
}

TEST(DateLayout, FillsInWhatTemplatesAskFor) {
  EXPECT_EQ(FormatDate("%d %b %Y", Date()), "05 Jan 2029");
  EXPECT_EQ(FormatDate("%B %d, %Y", Date()), "January 05, 2029");
  EXPECT_EQ(FormatDate("%Y-%m-%d", Date()), "2029-01-05");
  EXPECT_EQ(FormatDate("{%H:%M:%S} }{", Date()), "{14:07:09} }{");
  EXPECT_EQ(FormatDate("", Date()), "");
}

TEST(DateLayout, WritesEachDirectiveAsStrftime) {
  for (int shift = 0; shift < 24; ++shift) {
    std::tm date = Date();
    date.tm_hour = (date.tm_hour + shift) % 24;
    date.tm_mon = shift % 12;
    date.tm_wday = shift % 7;
    date.tm_mday = shift + 1;
    date.tm_yday = 15 * shift;
    for (const char directive : kDateDirectives) {
      const std::string layout = {'%', directive};
      char expected[64];
      ASSERT_GT(std::strftime(expected, sizeof(expected), layout.c_str(), &date), 0U);
      EXPECT_EQ(FormatDate(layout, date), expected) << layout;
    }
  }
}

TEST(DateLayout, KnowsWhatItCannotFillIn) {
  EXPECT_TRUE(IsDateLayout("100 %%, %Y"));
  EXPECT_FALSE(IsDateLayout("%c"));
  EXPECT_FALSE(IsDateLayout("%-d"));
  EXPECT_FALSE(IsDateLayout("%Y %"));
}

TEST(DateLayout, TakesTheLocalDate) {
  const std::time_t before = std::time(nullptr);
  std::tm date = LocalDate();
  const std::time_t taken = std::mktime(&date);
  EXPECT_GE(taken, before);
  EXPECT_LE(taken, std::time(nullptr));
}

}  // namespace
}  // namespace carousel
