// SPDX-License-Identifier: Apache-2.0
// Indexes shared out among the threads of a loop, without one counter that all of them wait for.
#pragma once

#include <array>
#include <atomic>
#include <cstddef>
#include <cstdint>
#include <thread>
#include <vector>

#include "base/aligned_buffer.h"

namespace carousel {

// Hands out lists of indexes, [0, count) each: to each worker its own part in order, what lies side
// by side to the same worker, and then what the others have not come to.
template <std::size_t kLists>
class Shares {
 public:
  // For one thread at a time, before the workers begin. Allocates only for more workers than ever
  // before.
  void Reset(const std::array<std::int64_t, kLists>& counts, std::int64_t workers) {
    if (static_cast<std::size_t>(workers) > parts_.size())
      parts_ = std::vector<Part>(static_cast<std::size_t>(workers));
    counts_ = counts;
    workers_ = workers;
    for (std::size_t list = 0; list < kLists; ++list) {
      for (std::int64_t part = 0; part < workers; ++part) Next(list, part) = Begin(list, part);
    }
  }

  // An index of the list that nobody has taken, or -1. Any number of workers at a time.
  std::int64_t Take(std::size_t list, std::int64_t worker) {
    if (counts_[list] == 0) return -1;
    for (std::int64_t i = 0; i < workers_; ++i) {
      const std::int64_t part = worker + i < workers_ ? worker + i : worker + i - workers_;
      const std::int64_t end = Begin(list, part + 1);
      // Looked at first: to add to a count takes its cache line away from whose it is.
      if (Next(list, part).load(std::memory_order_relaxed) >= end) continue;
      const std::int64_t index = Next(list, part).fetch_add(1, std::memory_order_relaxed);
      if (index < end) return index;
    }
    return -1;
  }

 private:
  // A worker's part of each list, in a cache line of its own.
  struct alignas(kAlignment) Part {
    std::array<std::atomic<std::int64_t>, kLists> next = {};
  };

  std::int64_t Begin(std::size_t list, std::int64_t part) const {
    return part * counts_[list] / workers_;
  }
  std::atomic<std::int64_t>& Next(std::size_t list, std::int64_t part) {
    return parts_[static_cast<std::size_t>(part)].next[list];
  }

  std::vector<Part> parts_;
  std::array<std::int64_t, kLists> counts_ = {};
  std::int64_t workers_ = 0;
};

// Returns once `count` has reached `target`, with what was written before it did. Does not sleep:
// those who count must be running.
inline void AwaitCount(const std::atomic<std::int64_t>& count, std::int64_t target) {
  constexpr int kSpins = 4096;
  for (int spin = 0; count.load(std::memory_order_acquire) < target; ++spin) {
    if (spin >= kSpins) {
      std::this_thread::yield();  // they may wait for this core
      continue;
    }
#if defined(__x86_64__)
    __builtin_ia32_pause();
#endif
  }
}

}  // namespace carousel
