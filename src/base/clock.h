// SPDX-License-Identifier: Apache-2.0
// The clock that durations are taken by: it never goes back.
#pragma once

#include <chrono>

namespace carousel {

using Clock = std::chrono::steady_clock;

inline double SecondsBetween(Clock::time_point begin, Clock::time_point end) {
  return std::chrono::duration<double>(end - begin).count();
}
inline double SecondsSince(Clock::time_point begin) { return SecondsBetween(begin, Clock::now()); }

}  // namespace carousel
