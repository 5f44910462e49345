// SPDX-License-Identifier: Apache-2.0
#include "base/parallel.h"

#include <gtest/gtest.h>

#include <atomic>
#include <new>
#include <stdexcept>
#include <vector>

namespace carousel {
namespace {

TEST(ParallelFor, RunsEachTaskOnce) {
  for (const std::int64_t count : {0, 1, 2, 7, 1000}) {
    std::vector<std::atomic<int>> runs(static_cast<std::size_t>(count));
    ParallelFor(count, [&](std::int64_t i) { ++runs[static_cast<std::size_t>(i)]; });
    for (const auto& run : runs) EXPECT_EQ(run, 1);
  }
}

TEST(ParallelFor, Nests) {
  std::atomic<int> total = 0;
  ParallelFor(8, [&](std::int64_t) { ParallelFor(8, [&](std::int64_t) { ++total; }); });
  EXPECT_EQ(total, 64);
}

TEST(ParallelFor, ManyLoopsInARow) {
  std::atomic<std::int64_t> total = 0;
  for (int loop = 0; loop < 2000; ++loop) {
    ParallelFor(3, [&](std::int64_t i) { total += i; });
  }
  EXPECT_EQ(total, 2000 * 3);
}

// Whichever thread's task it is that throws.
TEST(ParallelFor, CarriesOneExceptionOutAndRunsTheOthers) {
  for (const std::int64_t count : {1, 2, 50}) {
    for (std::int64_t bad = 0; bad < count; ++bad) {
      std::atomic<std::int64_t> ran = 0;
      try {
        ParallelFor(count, [&](std::int64_t i) {
          ++ran;
          if (i == bad) throw std::bad_alloc();
        });
        FAIL() << "nothing was thrown for task " << bad << " of " << count;
      } catch (const std::bad_alloc&) {
        EXPECT_EQ(ran, count);
      }
    }
  }
}

TEST(ParallelFor, CarriesTheExceptionOfANestedLoopAndGoesOn) {
  for (int round = 0; round < 100; ++round) {
    EXPECT_THROW(ParallelFor(4,
                             [&](std::int64_t) {
                               ParallelFor(4, [](std::int64_t i) {
                                 if (i % 2 == 1) throw std::runtime_error("odd");
                               });
                             }),
                 std::runtime_error);
    std::atomic<int> total = 0;
    ParallelFor(8, [&](std::int64_t) { ++total; });
    ASSERT_EQ(total, 8);
  }
}

TEST(SetThreadCount, OneThreadStillRunsEverything) {
  SetThreadCount(1);
  std::atomic<int> total = 0;
  ParallelFor(10, [&](std::int64_t) { ++total; });
  EXPECT_EQ(total, 10);
  EXPECT_EQ(ParallelWidth(), 1);
  SetThreadCount(0);
  EXPECT_GE(ParallelWidth(), 1);
}

}  // namespace
}  // namespace carousel
