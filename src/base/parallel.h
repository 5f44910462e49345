// SPDX-License-Identifier: Apache-2.0
// A parallel loop: oneTBB from the OpenVINO wheel when built with it, threads of our own otherwise.
#pragma once

#include <cstdint>
#include <memory>
#include <type_traits>

namespace carousel {

// A loop's body: any callable that takes the index, referred to and not copied, so that a loop
// allocates nothing. The callable outlives it.
class TaskRef {
 public:
  template <typename Task>
  requires std::is_invocable_v<const Task&, std::int64_t> &&
      (!std::is_same_v<std::remove_cvref_t<Task>, TaskRef>)
      // NOLINTNEXTLINE(google-explicit-constructor): a loop is given its body as it is.
      TaskRef(const Task& task)
      : task_(std::addressof(task)),
        call_([](const void* object, std::int64_t i) { (*static_cast<const Task*>(object))(i); }) {}

  void operator()(std::int64_t i) const { call_(task_, i); }

 private:
  const void* task_;
  void (*call_)(const void*, std::int64_t);
};

// Runs task(i) for each i in [0, count), in any order and on any thread, and returns when all are
// done. Where tasks throw, all others run all the same, and then the first exception is thrown on
// from here. Nested calls are allowed. Inside an OpenVINO inference this uses the
// inference's own threads, so a thread count set there holds here too.
void ParallelFor(std::int64_t count, TaskRef task);

// How many tasks can run at once from this thread.
std::int64_t ParallelWidth();

// Sets the number of threads for callers outside an OpenVINO inference. 0: one per core.
void SetThreadCount(std::int64_t threads);

}  // namespace carousel
