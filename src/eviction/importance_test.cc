// SPDX-License-Identifier: Apache-2.0
#include "eviction/importance.h"

#include <gtest/gtest.h>
#include <rapidcheck/gtest.h>

#include <cmath>
#include <limits>

namespace carousel {
namespace {

TEST(SnapKvQueries, CappedCountsEachStepsLast) {
  const EvictionConfig config{.snapkv_window = 8};
  EXPECT_EQ(SnapKvQueries(config, 256, 1000), 8);
  EXPECT_EQ(SnapKvQueries(config, 5, 0), 5);
  EXPECT_EQ(SnapKvQueries({.snapkv_window = 0}, 256, 1000), 256);
}

TEST(SnapKvQueries, AtEndCountsOnlyThePromptsLast) {
  const EvictionConfig config{.snapkv_window = 8, .prompt_eviction = PromptEviction::kAtEnd};
  EXPECT_EQ(SnapKvQueries(config, 256, 1000), 0);
  EXPECT_EQ(SnapKvQueries(config, 256, 3), 5);  // the window reaches five tokens into this chunk
  EXPECT_EQ(SnapKvQueries(config, 3, 0), 3);
  EXPECT_EQ(SnapKvQueries(config, 256, 0), 8);
  EXPECT_EQ(SnapKvQueries(config, 1, 0), 1);  // decode
}

RC_GTEST_PROP(MaxPool, EqualsTheDefinition, (std::vector<std::uint8_t> bytes)) {
  const std::int64_t width = 1 + 2 * *rc::gen::inRange(0, 6);
  const std::vector<float> from(bytes.begin(), bytes.end());
  std::vector<float> to(from.size());
  MaxPool(from, width, to);
  for (std::size_t i = 0; i < from.size(); ++i) {
    float largest = 0.0F;
    for (std::size_t j = 0; j < from.size(); ++j) {
      const auto distance = static_cast<std::int64_t>(i > j ? i - j : j - i);
      if (distance <= width / 2) largest = std::max(largest, from[j]);
    }
    RC_ASSERT(to[i] == largest);
  }
}

std::vector<TableEntry> Entries(std::int64_t count, std::int64_t last_tokens) {
  std::vector<TableEntry> entries(static_cast<std::size_t>(count));
  for (std::size_t i = 0; i < entries.size(); ++i) {
    entries[i].logical = Position{static_cast<std::int64_t>(i) * 8};
    entries[i].tokens = i + 1 == entries.size() ? last_tokens : 8;
  }
  return entries;
}

TEST(ImportanceTracker, SumsMassPerBlockAndLifetimes) {
  ImportanceTracker sum(8, {.aggregation = Aggregation::kSum});
  ImportanceTracker norm(8, {.aggregation = Aggregation::kNormSum});
  for (ImportanceTracker* tracker : {&sum, &norm}) {
    std::vector<float> mass(16, 0.25F);
    tracker->Record(Entries(2, 8), mass, 10);
    mass.assign(24, 0.5F);
    tracker->Record(Entries(3, 4), mass, 5);  // the last block's empty slots do not count
  }
  EXPECT_DOUBLE_EQ(sum.Score(0), 8 * 0.25 + 8 * 0.5);
  EXPECT_DOUBLE_EQ(sum.Score(2), 4 * 0.5);
  EXPECT_DOUBLE_EQ(norm.Score(0), 6.0 / 15);
  EXPECT_DOUBLE_EQ(norm.Score(2), 2.0 / 5);
}

TEST(ImportanceTracker, PoolsOverNeighboursAcrossBlocks) {
  ImportanceTracker tracker(8, {.aggregation = Aggregation::kSum, .pooling_width = 7});
  std::vector<float> mass(24, 0.0F);
  mass[8] = 1.0F;  // first token of block 1: three tokens each side get its vote
  tracker.Record(Entries(3, 8), mass, 8);
  EXPECT_DOUBLE_EQ(tracker.Score(0), 3.0);
  EXPECT_DOUBLE_EQ(tracker.Score(1), 4.0);
  EXPECT_DOUBLE_EQ(tracker.Score(2), 0.0);
}

TEST(ImportanceTracker, ScoresStayWithTheirBlocks) {
  ImportanceTracker tracker(8, {.aggregation = Aggregation::kSum});
  std::vector<float> mass(32);
  for (std::size_t i = 0; i < mass.size(); ++i) mass[i] = static_cast<float>(i / 8);
  tracker.Record(Entries(4, 8), mass, 1);
  const std::vector<std::int64_t> victims = {0, 2};
  tracker.Erase(victims);
  ASSERT_EQ(tracker.entries(), 2);
  EXPECT_DOUBLE_EQ(tracker.Score(0), 8.0);
  EXPECT_DOUBLE_EQ(tracker.Score(1), 24.0);
}

TEST(ImportanceTracker, NobodyIsEvictedUnheard) {
  ImportanceTracker tracker(8, {});
  tracker.Record(Entries(2, 8), {}, 0);
  EXPECT_EQ(tracker.Score(1), std::numeric_limits<double>::infinity());
}

}  // namespace
}  // namespace carousel
