// SPDX-License-Identifier: Apache-2.0
#include "measure/process_memory.h"

#include <fstream>
#include <limits>
#include <string>

namespace carousel {

ProcessMemory ReadProcessMemory() {
  ProcessMemory memory;
  std::ifstream status("/proc/self/status");
  std::string key;
  while (status >> key) {
    std::int64_t* target = key == "VmRSS:"   ? &memory.rss_bytes
                           : key == "VmHWM:" ? &memory.peak_rss_bytes
                                             : nullptr;
    std::int64_t kibibytes = 0;
    if (target != nullptr && status >> kibibytes) *target = kibibytes * 1024;
    status.ignore(std::numeric_limits<std::streamsize>::max(), '\n');
  }
  return memory;
}

}  // namespace carousel
