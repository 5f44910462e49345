// SPDX-License-Identifier: Apache-2.0
#include "cli/numbers.h"

#include <gtest/gtest.h>

#include "measure/process_memory.h"

namespace carousel {
namespace {

TEST(Numbers, GroupsDigits) {
  EXPECT_EQ(Grouped(0), "0");
  EXPECT_EQ(Grouped(999), "999");
  EXPECT_EQ(Grouped(1000), "1,000");
  EXPECT_EQ(Grouped(-123456), "-123,456");
  EXPECT_EQ(Grouped(1234567), "1,234,567");
}

TEST(Numbers, Megabytes) {
  EXPECT_EQ(Megabytes(318LL << 20), "318 MB");
  EXPECT_EQ(Megabytes(20LL << 30), "20.0 GB");
}

TEST(ProcessMemory, PeakIsNoLessThanNow) {
  const ProcessMemory memory = ReadProcessMemory();
  EXPECT_GT(memory.rss_bytes, 0);
  EXPECT_GE(memory.peak_rss_bytes, memory.rss_bytes);
}

}  // namespace
}  // namespace carousel
