// SPDX-License-Identifier: Apache-2.0
#include "eviction/plan.h"

#include <gtest/gtest.h>
#include <rapidcheck/gtest.h>

#include <algorithm>

namespace carousel {
namespace {

constexpr std::int64_t kBlock = 8;

// Random survivors of a stream: full blocks with gaps, a last block that may be partly filled.
std::vector<TableEntry> RandomEntries() {
  std::vector<TableEntry> entries;
  std::int64_t logical = 0;
  const int count = *rc::gen::inRange(0, 30);
  for (int i = 0; i < count; ++i) {
    logical += kBlock * *rc::gen::inRange(0, 3);
    entries.push_back({.block = {}, .written = {}, .logical = Position{logical}, .tokens = kBlock});
    logical += kBlock;
  }
  if (!entries.empty()) entries.back().tokens = *rc::gen::inRange(1, static_cast<int>(kBlock) + 1);
  return entries;
}

// Token by token: a block may go when it is full, none of its tokens is among the stream's first
// start_size, and none among the last recent_size that are kept.
RC_GTEST_PROP(FindEvictable, EqualsTheDefinition, ()) {
  const auto entries = RandomEntries();
  const std::int64_t start = kBlock * *rc::gen::inRange(1, 5);
  const std::int64_t recent = kBlock * *rc::gen::inRange(1, 5);
  const EvictableRange range = FindEvictable(entries, kBlock, start, recent);
  std::int64_t after = 0;  // kept tokens behind the block
  for (auto i = static_cast<std::int64_t>(entries.size()) - 1; i >= 0; --i) {
    const TableEntry& entry = entries[static_cast<std::size_t>(i)];
    const bool may_go = entry.tokens == kBlock && entry.logical.value >= start && after >= recent;
    RC_ASSERT(may_go == (i >= range.first && i < range.last));
    after += entry.tokens;
  }
}

RC_GTEST_PROP(LowestScores, TakesTheLowest, (std::vector<std::uint8_t> scores)) {
  const auto count = static_cast<std::int64_t>(scores.size());
  const EvictableRange range{.first = count / 4, .last = count - count / 4};
  const std::int64_t wanted = *rc::gen::inRange<std::int64_t>(0, count + 2);
  const auto score = [&](std::int64_t entry) {
    return scores[static_cast<std::size_t>(entry)] / 16;
  };
  const auto victims = LowestScores(range, wanted, score);
  RC_ASSERT(static_cast<std::int64_t>(victims.size()) == std::min(wanted, range.blocks()));
  RC_ASSERT(std::is_sorted(victims.begin(), victims.end()));
  for (std::int64_t entry = range.first; entry < range.last; ++entry) {
    const bool gone = std::binary_search(victims.begin(), victims.end(), entry);
    for (const std::int64_t victim : victims) {
      RC_ASSERT(victim >= range.first && victim < range.last);
      // Who stays scores higher than who goes, or is newer at the same score.
      if (!gone)
        RC_ASSERT(score(entry) > score(victim) ||
                  (score(entry) == score(victim) && entry > victim));
    }
  }
}

TEST(BlocksOverLimit, RoundsUp) {
  EXPECT_EQ(BlocksOverLimit(512, 512, 32), 0);
  EXPECT_EQ(BlocksOverLimit(100, 512, 32), 0);
  EXPECT_EQ(BlocksOverLimit(513, 512, 32), 1);
  EXPECT_EQ(BlocksOverLimit(768, 512, 32), 8);
}

TEST(PastWindow, OnlyBlocksThatNoQueryCanSee) {
  std::vector<TableEntry> entries;
  for (std::int64_t i = 0; i < 6; ++i) {
    entries.push_back(
        {.block = {}, .written = {}, .logical = Position{i * kBlock}, .tokens = kBlock});
  }
  // The next token is 48. With a window of 16 it sees 33..47: blocks 0..3 (tokens up to 31) are
  // past.
  EXPECT_EQ(PastWindow(entries, kBlock, 16, Position{48}), (std::vector<std::int64_t>{0, 1, 2, 3}));
  EXPECT_EQ(PastWindow(entries, kBlock, 17, Position{48}), (std::vector<std::int64_t>{0, 1, 2, 3}));
  EXPECT_EQ(PastWindow(entries, kBlock, 18, Position{48}), (std::vector<std::int64_t>{0, 1, 2}));
  EXPECT_TRUE(PastWindow(entries, kBlock, 100, Position{48}).empty());
}

}  // namespace
}  // namespace carousel
