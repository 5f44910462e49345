// SPDX-License-Identifier: Apache-2.0
// How large sizes may be.
#pragma once

#include <cstdint>

namespace carousel {

// Larger sizes are typing errors; below this no sum of sizes overflows.
inline constexpr std::int64_t kLargestSize = std::int64_t{1} << 40;
// Of the start and the recent area, so that a cache can be larger than both.
inline constexpr std::int64_t kLargestArea = kLargestSize / 4;
inline constexpr std::int64_t kLargestBlock = 256;
inline constexpr std::int64_t kLargestChunk = 65536;
inline constexpr std::int64_t kMostRequests = 4096;  // side by side
inline constexpr std::int64_t kMostBeams = 128;      // of one search

}  // namespace carousel
