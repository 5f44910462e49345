// SPDX-License-Identifier: Apache-2.0
// The process's memory as the kernel counts it.
#pragma once

#include <cstdint>

namespace carousel {

struct ProcessMemory {
  std::int64_t rss_bytes = 0;       // resident now
  std::int64_t peak_rss_bytes = 0;  // the most ever
};

// From /proc/self; zeros where that is not to be had.
ProcessMemory ReadProcessMemory();

}  // namespace carousel
