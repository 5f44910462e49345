// SPDX-License-Identifier: Apache-2.0
#include "base/shares.h"

#include <gtest/gtest.h>

#include <atomic>
#include <thread>
#include <vector>

namespace carousel {
namespace {

TEST(Shares, GiveAWorkerItsOwnPartFirstAndThenWhatIsLeft) {
  Shares<1> shares;
  shares.Reset({7}, 3);  // [0, 2), [2, 4), [4, 7)
  std::vector<std::int64_t> taken;
  for (int i = 0; i < 3; ++i) taken.push_back(shares.Take(0, 2));
  taken.push_back(shares.Take(0, 1));
  for (int i = 0; i < 4; ++i) taken.push_back(shares.Take(0, 2));
  EXPECT_EQ(taken, (std::vector<std::int64_t>{4, 5, 6, 2, 0, 1, 3, -1}));
  EXPECT_EQ(shares.Take(0, 0), -1);
}

TEST(Shares, MayBeNoneAndMayBeFewerThanWorkers) {
  Shares<1> shares;
  shares.Reset({0}, 4);
  EXPECT_EQ(shares.Take(0, 3), -1);
  shares.Reset({2}, 4);
  EXPECT_EQ(shares.Take(0, 0) + shares.Take(0, 0), 1);
  EXPECT_EQ(shares.Take(0, 0), -1);
}

TEST(Shares, HandOutEachIndexOnceToThreads) {
  constexpr std::int64_t kWorkers = 4;
  Shares<2> shares;
  for (const std::int64_t count : {1, 3, 1000}) {
    shares.Reset({5, count}, kWorkers);
    std::vector<std::atomic<int>> times(static_cast<std::size_t>(count));
    std::atomic<std::int64_t> done = 0;
    std::vector<std::jthread> threads;
    for (std::int64_t worker = 0; worker < kWorkers; ++worker) {
      threads.emplace_back([&, worker] {
        for (std::int64_t i = shares.Take(1, worker); i >= 0; i = shares.Take(1, worker)) {
          ++times[static_cast<std::size_t>(i)];
          done.fetch_add(1, std::memory_order_release);
        }
      });
    }
    AwaitCount(done, count);
    for (const auto& time : times) EXPECT_EQ(time, 1);
    EXPECT_EQ(shares.Take(0, 0), 0);  // the other list is as it was
  }
}

}  // namespace
}  // namespace carousel
