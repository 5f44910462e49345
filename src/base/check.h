// SPDX-License-Identifier: Apache-2.0
// CHECKs catch bugs of ours, in release builds too: they print the values and abort.
// What a user, a file or a model brought is a carousel::Error instead.
#pragma once

#include <fmt/format.h>

#include <cstdio>
#include <cstdlib>
#include <string>

namespace carousel {

[[noreturn]] inline void CheckFailed(const char* file, int line, const char* condition,
                                     const std::string& values) {
  std::fprintf(stderr, "%s:%d: CHECK failed: %s%s\n", file, line, condition, values.c_str());
  std::abort();
}

}  // namespace carousel

#define CAROUSEL_CHECK(condition)                                                  \
  do {                                                                             \
    if (!(condition)) ::carousel::CheckFailed(__FILE__, __LINE__, #condition, ""); \
  } while (false)

#define CAROUSEL_CHECK_COMPARE(left, operation, right)                              \
  do {                                                                              \
    const auto& check_left = (left);                                                \
    const auto& check_right = (right);                                              \
    if (!(check_left operation check_right))                                        \
      ::carousel::CheckFailed(__FILE__, __LINE__, #left " " #operation " " #right,  \
                              fmt::format(" ({} vs {})", check_left, check_right)); \
  } while (false)

#define CAROUSEL_CHECK_EQ(left, right) CAROUSEL_CHECK_COMPARE(left, ==, right)
#define CAROUSEL_CHECK_NE(left, right) CAROUSEL_CHECK_COMPARE(left, !=, right)
#define CAROUSEL_CHECK_LT(left, right) CAROUSEL_CHECK_COMPARE(left, <, right)
#define CAROUSEL_CHECK_LE(left, right) CAROUSEL_CHECK_COMPARE(left, <=, right)
#define CAROUSEL_CHECK_GT(left, right) CAROUSEL_CHECK_COMPARE(left, >, right)
#define CAROUSEL_CHECK_GE(left, right) CAROUSEL_CHECK_COMPARE(left, >=, right)
