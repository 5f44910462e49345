// SPDX-License-Identifier: Apache-2.0
// A parallel loop: oneTBB from the OpenVINO wheel when built with it, threads of our own otherwise.
#pragma once

#include <cstdint>
#include <functional>

namespace carousel {

// Runs task(i) for each i in [0, count), in any order and on any thread, and returns when all are
// done. Tasks must not throw. Nested calls are allowed. Inside an OpenVINO inference this uses the
// inference's own threads, so a thread count set there holds here too.
void ParallelFor(std::int64_t count, const std::function<void(std::int64_t)>& task);

// How many tasks can run at once from this thread.
std::int64_t ParallelWidth();

// Sets the number of threads for callers outside an OpenVINO inference. 0: one per core.
void SetThreadCount(std::int64_t threads);

}  // namespace carousel
