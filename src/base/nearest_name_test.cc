// SPDX-License-Identifier: Apache-2.0
#include "base/nearest_name.h"

#include <gtest/gtest.h>

namespace carousel {
namespace {

TEST(NearestName, IsAtMostTwoEditsAway) {
  const std::vector<std::string> names = {"start_size", "recent_size", "top_k", "top_p"};
  EXPECT_EQ(NearestName("start_size", names), "start_size");
  EXPECT_EQ(NearestName("start-sise", names), "start_size");
  EXPECT_EQ(NearestName("recentsize", names), "recent_size");
  EXPECT_EQ(NearestName("tpo_k", names), "top_k");
  EXPECT_EQ(NearestName("top_x", names), "top_k");  // the first of the nearest
  EXPECT_EQ(NearestName("stort-sise", names), "");
  EXPECT_EQ(NearestName("", names), "");
  EXPECT_EQ(NearestName(std::string(1 << 20, 'x'), names), "");
}

}  // namespace
}  // namespace carousel
