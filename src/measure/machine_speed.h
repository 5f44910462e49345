// SPDX-License-Identifier: Apache-2.0
// What the machine can do at most, measured by two loops that do nothing else: what an attention
// kernel's figures are held against.
#pragma once

#include <cstddef>
#include <cstdint>
#include <span>
#include <string>
#include <vector>

#include "measure/contender.h"

namespace carousel {

struct MachineSpeed {
  std::string target;        // the instruction set that Highway chose: "AVX2", "AVX3_ZEN4", ...
  std::int64_t threads = 0;  // that took part
  std::int64_t cache_bytes = 0;
  double memory_gb_per_s = 0.0;   // reading; 1e9 bytes
  double peak_gflop_per_s = 0.0;  // a float32 multiply-add counts twice
};

// A plain sum of memory, on all threads: how fast it can be read at the time.
class MemoryReader : public Contender {
 public:
  // `memory` begins as AlignedBuffer's does, has a page for each part at least, and outlives this.
  explicit MemoryReader(std::span<const std::byte> memory);

  void Run() override;
  // That a run reads: those of `memory` but for some pages at its end.
  std::int64_t bytes() const { return part_bytes_ * std::ssize(sums_); }

 private:
  std::span<const std::byte> memory_;
  std::vector<std::uint32_t> sums_;  // one for each part, so that no reading is left out
  std::int64_t part_bytes_ = 0;
};

// The last-level caches as the system states them, all together; 32 MB where it does not.
std::int64_t LastLevelCacheBytes();

// Takes seconds, most of them for pages of memory to become ours. The best of several passes: a
// lower one was disturbed. All threads of ParallelFor read a buffer of eight times the last-level
// cache (at least 256 MB), each element once; then each thread multiplies and adds in registers.
// Throws std::bad_alloc.
MachineSpeed MeasureMachine();

}  // namespace carousel
