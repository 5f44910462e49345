// SPDX-License-Identifier: Apache-2.0
// What the machine can do at most, measured by two loops that do nothing else: what an attention
// kernel's figures are held against.
#pragma once

#include <cstdint>
#include <string>

namespace carousel {

struct MachineSpeed {
  std::string target;        // the instruction set that Highway chose: "AVX2", "AVX3_ZEN4", ...
  std::int64_t threads = 0;  // that took part
  std::int64_t cache_bytes = 0;
  double memory_gb_per_s = 0.0;   // reading; 1e9 bytes
  double peak_gflop_per_s = 0.0;  // a float32 multiply-add counts twice
};

// The last-level caches as the system states them, all together; 32 MB where it does not.
std::int64_t LastLevelCacheBytes();

// Takes seconds, most of them for pages of memory to become ours. The best of several passes: a
// lower one was disturbed. All threads of ParallelFor read a buffer of eight times the last-level
// cache (at least 256 MB), each element once; then each thread multiplies and adds in registers.
// Throws std::bad_alloc.
MachineSpeed MeasureMachine();

}  // namespace carousel
