// SPDX-License-Identifier: Apache-2.0
#include <oneapi/tbb/global_control.h>
#include <oneapi/tbb/parallel_for.h>
#include <oneapi/tbb/partitioner.h>
#include <oneapi/tbb/task_arena.h>

#include <algorithm>
#include <memory>

#include "base/first_failure.h"
#include "base/parallel.h"

namespace carousel {

void ParallelFor(std::int64_t count, TaskRef task) {
  if (count <= 1) {
    if (count == 1) task(0);
    return;
  }
  FirstFailure failure;
  tbb::parallel_for(
      tbb::blocked_range<std::int64_t>(0, count, 1),
      [&](const tbb::blocked_range<std::int64_t>& range) {
        for (std::int64_t i = range.begin(); i != range.end(); ++i) failure.Run(task, i);
      },
      tbb::simple_partitioner());
  failure.Rethrow();
}

std::int64_t ParallelWidth() {
  // The arena's width does not know of the limit.
  const auto limit =
      tbb::global_control::active_value(tbb::global_control::max_allowed_parallelism);
  return std::min<std::int64_t>(tbb::this_task_arena::max_concurrency(),
                                static_cast<std::int64_t>(limit));
}

void SetThreadCount(std::int64_t threads) {
  static std::unique_ptr<tbb::global_control> control;
  control.reset();
  if (threads > 0) {
    control = std::make_unique<tbb::global_control>(tbb::global_control::max_allowed_parallelism,
                                                    static_cast<std::size_t>(threads));
  }
}

}  // namespace carousel
