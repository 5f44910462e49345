// SPDX-License-Identifier: Apache-2.0
// The parallel loop without TBB: for the core alone, and for ThreadSanitizer, which cannot see into
// TBB.
#include <algorithm>
#include <atomic>
#include <condition_variable>
#include <memory>
#include <mutex>
#include <thread>
#include <utility>
#include <vector>

#include "base/first_failure.h"
#include "base/parallel.h"

namespace carousel {
namespace {

// Workers wait for one loop at a time; the caller works beside them.
class ThreadPool {
 public:
  explicit ThreadPool(std::int64_t threads) {
    for (std::int64_t i = 1; i < threads; ++i) {
      workers_.emplace_back([this](const std::stop_token& stop) { Work(stop); });
    }
  }

  ~ThreadPool() {
    for (auto& worker : workers_) worker.request_stop();
    wake_.notify_all();
  }

  std::int64_t width() const { return static_cast<std::int64_t>(workers_.size()) + 1; }

  void Run(std::int64_t count, const TaskRef& task) {
    const std::lock_guard one_loop(loop_mutex_);
    {
      const std::lock_guard lock(mutex_);
      task_ = &task;
      count_ = count;
      next_ = 0;
      ++generation_;
      busy_ = static_cast<std::int64_t>(workers_.size());
    }
    wake_.notify_all();
    Drain(task, count);
    std::unique_lock lock(mutex_);
    done_.wait(lock, [this] { return busy_ == 0; });
    task_ = nullptr;
  }

 private:
  void Drain(const TaskRef& task, std::int64_t count) {
    for (std::int64_t i = next_++; i < count; i = next_++) task(i);
  }

  void Work(const std::stop_token& stop) {
    std::int64_t seen = 0;
    while (true) {
      const TaskRef* task = nullptr;
      std::int64_t count = 0;
      {
        std::unique_lock lock(mutex_);
        if (!wake_.wait(lock, stop, [&] { return generation_ != seen; })) return;
        seen = generation_;
        task = task_;
        count = count_;
      }
      inside_ = true;
      Drain(*task, count);
      inside_ = false;
      const std::lock_guard lock(mutex_);
      if (--busy_ == 0) done_.notify_one();
    }
  }

 public:
  static thread_local bool inside_;  // a nested loop runs in line

 private:
  std::mutex loop_mutex_;  // callers on several threads take turns
  std::mutex mutex_;       // guards all below but next_
  std::condition_variable_any wake_;
  std::condition_variable done_;
  const TaskRef* task_ = nullptr;
  std::int64_t count_ = 0;
  std::int64_t generation_ = 0;
  std::int64_t busy_ = 0;
  std::atomic<std::int64_t> next_ = 0;
  std::vector<std::jthread> workers_;  // last: joined before what they use goes
};

thread_local bool ThreadPool::inside_ = false;

std::int64_t DefaultThreads() {
  return std::max<std::int64_t>(1, static_cast<std::int64_t>(std::thread::hardware_concurrency()));
}

std::unique_ptr<ThreadPool>& Pool() {
  static auto pool = std::make_unique<ThreadPool>(DefaultThreads());
  return pool;
}

}  // namespace

void ParallelFor(std::int64_t count, TaskRef task) {
  FirstFailure failure;
  const auto guarded = [&](std::int64_t i) { failure.Run(task, i); };
  if (count <= 1 || ThreadPool::inside_ || Pool()->width() == 1) {
    for (std::int64_t i = 0; i < count; ++i) guarded(i);
  } else {
    const bool was_inside = std::exchange(ThreadPool::inside_, true);
    Pool()->Run(count, guarded);
    ThreadPool::inside_ = was_inside;
  }
  failure.Rethrow();
}

std::int64_t ParallelWidth() { return ThreadPool::inside_ ? 1 : Pool()->width(); }

void SetThreadCount(std::int64_t threads) {
  Pool() = std::make_unique<ThreadPool>(threads > 0 ? threads : DefaultThreads());
}

}  // namespace carousel
