// SPDX-License-Identifier: Apache-2.0
#include "cli/error_text.h"

#include <gtest/gtest.h>

namespace carousel {
namespace {

const FieldLabels kLabels = {{"max_cache_size", "--max-cache-size"}, {"text", "--text"}};

TEST(ErrorText, CallsSettingsByTheirFlags) {
  const Error error(ErrorCode::kInvalidArgument, "max_cache_size", "500 is no good");
  EXPECT_EQ(ErrorText(error, kLabels), "--max-cache-size: 500 is no good");
  EXPECT_EQ(ExitStatus(error, kLabels), kExitUsage);
}

TEST(ErrorText, InsideASentenceOnlyNamesThatAreNoWords) {
  const Error error(ErrorCode::kInvalidArgument, "chunk_size",
                    "the text max_cache_size, max_cache");
  EXPECT_EQ(ErrorText(error, kLabels), "chunk_size: the text --max-cache-size, max_cache");
  EXPECT_EQ(ExitStatus(error, kLabels), kExitFailure);
}

TEST(ErrorText, WhatSomebodyWroteStaysAsItIs) {
  const Error error(
      ErrorCode::kInvalidArgument, "text",
      "\"max_cache_size\" in /tmp/max_cache_size/a, b.max_cache_size; max_cache_size 5");
  EXPECT_EQ(ErrorText(error, kLabels),
            "--text: \"max_cache_size\" in /tmp/max_cache_size/a, b.max_cache_size; "
            "--max-cache-size 5");
}

TEST(ErrorText, FailuresAreNoBadUsage) {
  EXPECT_EQ(ExitStatus(Error(ErrorCode::kIo, "text", "cannot open"), kLabels), kExitFailure);
}

TEST(ErrorText, IsOneLine) {
  EXPECT_EQ(ErrorText(Error(ErrorCode::kModel, "model", "a\nb\x1b[0m"), {}), "model: a b [0m");
}

}  // namespace
}  // namespace carousel
