// SPDX-License-Identifier: Apache-2.0
#include "openvino/context_length.h"

#include <gtest/gtest.h>

#include <vector>

#include "carousel/error.h"

namespace carousel {
namespace {

TEST(ContextLength, IsBehindTheLargestPosition) {
  EXPECT_EQ(ContextLength(std::vector<std::int64_t>{0}), 1);
  EXPECT_EQ(ContextLength(std::vector<std::int64_t>{7, 8, 3}), 9);
  EXPECT_EQ(ContextLength(std::vector<std::int64_t>{2147483646}), 2147483647);
}

// An endless stream gets there when nothing is moved together.
TEST(ContextLength, ThatTheGraphCannotCountIsRefused) {
  for (const std::int64_t position : {std::int64_t{2147483647}, std::int64_t{1} << 40}) {
    try {
      ContextLength(std::vector<std::int64_t>{5, position});
      FAIL();
    } catch (const Error& error) {
      EXPECT_EQ(error.field(), "positions");
      EXPECT_NE(error.problem().find("compact"), std::string::npos);
    }
  }
}

}  // namespace
}  // namespace carousel
