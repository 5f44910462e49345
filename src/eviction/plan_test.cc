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
// start_size, none among the last recent_size that are kept, and none is pinned.
RC_GTEST_PROP(FindCandidates, EqualTheDefinition, ()) {
  const auto entries = RandomEntries();
  const std::int64_t start = kBlock * *rc::gen::inRange(1, 5);
  const std::int64_t recent = kBlock * *rc::gen::inRange(1, 5);
  std::set<std::int64_t> pinned;
  for (int i = *rc::gen::inRange(0, 5); i > 0; --i) pinned.insert(*rc::gen::inRange(0, 40));
  const auto candidates =
      FindCandidates(entries, kBlock, {.start_size = start, .recent_size = recent}, pinned);
  RC_ASSERT(std::is_sorted(candidates.begin(), candidates.end()));
  std::int64_t after = 0;  // kept tokens behind the block
  for (auto i = static_cast<std::int64_t>(entries.size()) - 1; i >= 0; --i) {
    const TableEntry& entry = entries[static_cast<std::size_t>(i)];
    const bool may_go = entry.tokens == kBlock && entry.logical.value >= start && after >= recent &&
                        !pinned.contains(entry.logical.value / kBlock);
    RC_ASSERT(may_go == std::binary_search(candidates.begin(), candidates.end(), i));
    after += entry.tokens;
  }
}

TEST(BlocksOverLimit, RoundsUp) {
  EXPECT_EQ(BlocksOverLimit(512, 512, 32), 0);
  EXPECT_EQ(BlocksOverLimit(481, 512, 32), 0);
  EXPECT_EQ(BlocksOverLimit(480, 512, 32), -1);
  EXPECT_EQ(BlocksOverLimit(0, 512, 32), -16);
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
