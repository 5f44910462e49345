// SPDX-License-Identifier: Apache-2.0
// How many random cases a test runs.
#pragma once

#include <cstdint>
#include <cstdlib>

#if defined(__has_feature)
#if __has_feature(thread_sanitizer)
#define CAROUSEL_UNDER_THREAD_SANITIZER
#elif __has_feature(address_sanitizer)
#define CAROUSEL_UNDER_ADDRESS_SANITIZER
#endif
#endif
#if defined(__SANITIZE_THREAD__)
#define CAROUSEL_UNDER_THREAD_SANITIZER
#elif defined(__SANITIZE_ADDRESS__)
#define CAROUSEL_UNDER_ADDRESS_SANITIZER
#endif

namespace carousel {

// All of them, save under a sanitizer: it is 5 to 50 times slower and looks for races and stray
// accesses, which the first cases show as well as the last; numbers are judged without one.
constexpr int RandomCases(int cases) {
#if defined(CAROUSEL_UNDER_THREAD_SANITIZER)
  return (cases + 19) / 20;
#elif defined(CAROUSEL_UNDER_ADDRESS_SANITIZER)
  return (cases + 4) / 5;
#else
  return cases;
#endif
}

// A number that an environment variable gives, for runs by hand that are longer or begin elsewhere.
inline std::int64_t NumberFrom(const char* variable, std::int64_t otherwise) {
  const char* text = std::getenv(variable);
  return text != nullptr && *text != '\0' ? std::strtoll(text, nullptr, 10) : otherwise;
}

// Of odd inputs each may lead to a stray access of its own: all of them, save where races are
// looked for.
constexpr int OddInputs(int inputs) {
#if defined(CAROUSEL_UNDER_THREAD_SANITIZER)
  return RandomCases(inputs);
#else
  return inputs;
#endif
}

}  // namespace carousel
