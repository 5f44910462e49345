// SPDX-License-Identifier: Apache-2.0
// Indexes shared out among the threads of a loop, without one counter that all of them wait for.
#pragma once

#include <atomic>
#include <cstddef>
#include <cstdint>
#include <thread>
#include <vector>

#include "base/aligned_buffer.h"

namespace carousel {

// Hands out [0, count): to each worker its own part in order, what lies side by side to the same
// worker, and then what the others have not come to.
class Shares {
 public:
  // For one thread at a time, before the workers begin. Allocates only for more workers than ever
  // before.
  void Reset(std::int64_t count, std::int64_t workers) {
    if (static_cast<std::size_t>(workers) > next_.size())
      next_ = std::vector<Count>(static_cast<std::size_t>(workers));
    count_ = count;
    workers_ = workers;
    for (std::int64_t part = 0; part < workers; ++part) Next(part).store(Begin(part));
  }

  // An index that nobody has taken, or -1. Any number of workers at a time.
  std::int64_t Take(std::int64_t worker) {
    for (std::int64_t i = 0; i < workers_; ++i) {
      const std::int64_t part = worker + i < workers_ ? worker + i : worker + i - workers_;
      // Looked at first: to add to a count takes its cache line away from whose it is.
      if (Next(part).load(std::memory_order_relaxed) >= Begin(part + 1)) continue;
      const std::int64_t index = Next(part).fetch_add(1, std::memory_order_relaxed);
      if (index < Begin(part + 1)) return index;
    }
    return -1;
  }

 private:
  // In a cache line of its own.
  struct alignas(kAlignment) Count {
    std::atomic<std::int64_t> value = 0;
  };

  std::int64_t Begin(std::int64_t part) const { return part * count_ / workers_; }
  std::atomic<std::int64_t>& Next(std::int64_t part) {
    return next_[static_cast<std::size_t>(part)].value;
  }

  std::vector<Count> next_;
  std::int64_t count_ = 0;
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
