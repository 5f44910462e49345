// SPDX-License-Identifier: Apache-2.0
// What a parallel loop does with tasks that throw.
#pragma once

#include <atomic>
#include <cstdint>
#include <exception>
#include <utility>

#include "base/parallel.h"

namespace carousel {

// Runs a loop's tasks and keeps the first exception that any of them throws, to be thrown again by
// the thread that began the loop.
class FirstFailure {
 public:
  // Any thread.
  void Run(const TaskRef& task, std::int64_t i) noexcept {
    try {
      task(i);
    } catch (...) {
      if (!taken_.test_and_set()) failure_ = std::current_exception();
    }
  }
  // After all tasks have ended.
  void Rethrow() {
    if (failure_) std::rethrow_exception(std::exchange(failure_, nullptr));
  }

 private:
  std::atomic_flag taken_;
  std::exception_ptr failure_;
};

}  // namespace carousel
