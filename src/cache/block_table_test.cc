// SPDX-License-Identifier: Apache-2.0
// Positions against a naive list of tokens.
#include "cache/block_table.h"

#include <gtest/gtest.h>
#include <rapidcheck/gtest.h>

#include <algorithm>
#include <cstdlib>
#include <cstring>
#include <random>

#include "carousel/error.h"

namespace carousel {
namespace {

constexpr std::int64_t kBlock = 8;

BlockShape Shape() { return {.block_size = kBlock, .kv_heads = 1, .key_dim = 8, .value_dim = 8}; }
BlockPools Pools(std::int64_t groups, std::int64_t blocks = 0) {
  return BlockPools(std::vector<BlockShape>(static_cast<std::size_t>(groups), Shape()),
                    blocks * static_cast<std::int64_t>(Shape().bytes()));
}

struct NaiveToken {
  std::int64_t logical;
  std::int64_t written;
};

// Each kept token, its written position and its distance from the next query, by counting.
void CheckAgainstNaive(const SequenceTables& tables,
                       const std::vector<std::vector<NaiveToken>>& naive) {
  tables.CheckIntegrity();
  for (std::int64_t group = 0; group < tables.groups(); ++group) {
    const auto& kept = naive[static_cast<std::size_t>(group)];
    RC_ASSERT(tables.table(group).resident_tokens() == static_cast<std::int64_t>(kept.size()));
    std::size_t next = 0;
    const auto entries = tables.table(group).entries();
    for (std::size_t i = 0; i < entries.size(); ++i) {
      const auto entry = static_cast<std::int64_t>(i);
      for (std::int64_t t = 0; t < entries[i].tokens; ++t, ++next) {
        RC_ASSERT(entries[i].logical.value + t == kept[next].logical);
        RC_ASSERT(entries[i].written.value + t == kept[next].written);
        const std::int64_t place = tables.mode() == PositionPolicy::kKeep
                                       ? kept[next].logical
                                       : static_cast<std::int64_t>(next);
        const std::int64_t query = tables.mode() == PositionPolicy::kKeep
                                       ? tables.logical_length().value
                                       : static_cast<std::int64_t>(kept.size());
        RC_ASSERT(tables.AttentionPosition(group, entry).value + t == place);
        // The defining property of the shift: written distance plus shift is the distance wanted.
        RC_ASSERT(tables.next_written().value - kept[next].written + tables.ShiftOf(group, entry) ==
                  query - place);
      }
    }
  }
}

RC_GTEST_PROP(SequenceTables, BehavesAsAListOfTokens, (std::vector<std::uint16_t> actions)) {
  const std::int64_t groups = *rc::gen::inRange(1, 4);
  const auto policy =
      *rc::gen::element(PositionPolicy::kAuto, PositionPolicy::kKeep, PositionPolicy::kCompact);
  const auto rotation = *rc::gen::element(Rotation::kQuery, Rotation::kKeys, Rotation::kOff);
  const std::int64_t window = *rc::gen::element(0, 100, 300);
  BlockPools pools = Pools(groups);
  SequenceTables tables(
      groups, kBlock,
      {.policy = policy, .rotation = rotation, .trained_window = window, .max_step_tokens = 24});
  std::vector<std::vector<NaiveToken>> naive(static_cast<std::size_t>(groups));
  std::vector<std::vector<NaiveToken>> evicted(naive.size());  // first tokens
  for (const std::uint16_t action : actions) {
    const std::int64_t group = action % groups;
    auto& kept = naive[static_cast<std::size_t>(group)];
    auto& gone = evicted[static_cast<std::size_t>(group)];
    const auto full = static_cast<std::int64_t>(kept.size()) / kBlock;
    if (action % 4 == 0 && full > 0) {
      const std::int64_t victim = action / 4 % full;
      tables.Evict(group, {&victim, 1}, pools.of(group));
      gone.push_back(kept[static_cast<std::size_t>(victim * kBlock)]);
      kept.erase(kept.begin() + victim * kBlock, kept.begin() + (victim + 1) * kBlock);
      continue;
    }
    // Key rotation has moved what was evicted before; only the newest block is never evicted.
    if (action % 4 == 1 && !gone.empty() && rotation != Rotation::kKeys && !kept.empty() &&
        kept.back().logical > gone.back().logical) {
      const std::int64_t entry = tables.Return(
          group,
          {.written = Position{gone.back().written}, .logical = Position{gone.back().logical}},
          pools.of(group));
      for (std::int64_t t = 0; t < kBlock; ++t) {
        kept.insert(kept.begin() + entry * kBlock + t,
                    {gone.back().logical + t, gone.back().written + t});
      }
      gone.pop_back();
      continue;  // what holds between steps is looked at after the next one
    }
    const std::int64_t tokens = tables.LimitStep(1 + action % 24);
    SequenceTables::Mark mark = tables.mark();
    tables.BeginStep(tokens);
    if (rotation == Rotation::kKeys) {
      mark = tables.mark();
      for (std::int64_t g = 0; g < groups; ++g) {
        std::size_t next = 0;
        for (std::size_t i = 0; i < tables.table(g).entries().size(); ++i) {
          const std::int64_t shift = tables.ShiftOf(g, static_cast<std::int64_t>(i));
          for (std::int64_t t = 0; t < tables.table(g).entries()[i].tokens; ++t) {
            naive[static_cast<std::size_t>(g)][next++].written -= shift;
          }
        }
        tables.KeysRotated(g);
      }
    }
    if (action % 4 == 2) {  // the step fails
      const Position next_written = mark.next_written;
      tables.Append(tokens, pools);
      tables.Truncate(mark, pools);
      RC_ASSERT(tables.next_written() == next_written);
      RC_ASSERT(tables.mode() == mark.mode);
      // Where the newest block was evicted, what holds between steps is looked at after the next.
      const bool whole = std::all_of(naive.begin(), naive.end(), [&](const auto& list) {
        return !list.empty() && list.back().logical + 1 == tables.logical_length().value;
      });
      if (whole) CheckAgainstNaive(tables, naive);
      continue;
    }
    for (std::int64_t g = 0; g < groups; ++g) {
      for (std::int64_t t = 0; t < tokens; ++t) {
        naive[static_cast<std::size_t>(g)].push_back(
            {tables.logical_length().value + t, tables.next_written().value + t});
      }
    }
    tables.Append(tokens, pools);
    CheckAgainstNaive(tables, naive);
    if (rotation == Rotation::kKeys && tables.mode() == PositionPolicy::kCompact) {
      for (std::int64_t g = 0; g < groups; ++g) {
        for (std::size_t i = 0; i < tables.table(g).entries().size(); ++i) {
          RC_ASSERT(tables.ShiftOf(g, static_cast<std::int64_t>(i)) == 0);
        }
      }
    }
  }
  std::int64_t in_use = 0;
  for (const auto& kept : naive)
    in_use += (static_cast<std::int64_t>(kept.size()) + kBlock - 1) / kBlock;
  RC_ASSERT(pools.of(0).blocks_in_use() == in_use);
  tables.Clear(pools);
  RC_ASSERT(pools.of(0).blocks_in_use() == 0);
}

// An endless stream in a small cache: angles stay inside the trained window for ever, whatever the
// step size.
TEST(SequenceTables, WrittenPositionsStayInsideTheWindow) {
  for (const std::int64_t step : {1, 3, 8, 11, 24}) {
    BlockPools pools = Pools(2);
    constexpr std::int64_t kWindow = 160;
    SequenceTables tables(2, kBlock,
                          {.policy = PositionPolicy::kCompact,
                           .rotation = Rotation::kQuery,
                           .trained_window = kWindow,
                           .max_step_tokens = 24});
    std::int64_t rebased = 0;
    for (int i = 0; i < 20000; ++i) {
      for (std::int64_t group = 0; group < 2; ++group) {
        // Groups keep different numbers of blocks.
        while (tables.table(group).resident_tokens() > 64 + 16 * group) {
          const std::int64_t victim = i % 3 + group;
          tables.Evict(group, {&victim, 1}, pools.of(group));
        }
      }
      const std::int64_t tokens = tables.LimitStep(step);
      const Position before = tables.next_written();
      tables.BeginStep(tokens);
      if (tables.next_written() < before) ++rebased;
      tables.Append(tokens, pools);
      ASSERT_LE(tables.next_written().value, kWindow);
      for (std::int64_t group = 0; group < 2; ++group) {
        const auto count = static_cast<std::int64_t>(tables.table(group).entries().size());
        for (std::int64_t entry = 0; entry < count; ++entry) {
          ASSERT_LT(std::abs(tables.ShiftOf(group, entry)), kWindow);
          ASSERT_EQ(tables.ShiftOf(group, entry) % kBlock, 0);
        }
      }
    }
    EXPECT_GT(rebased, 10);
  }
}

// kAuto as well, whatever the steps' sizes, where blocks begin and what the window is a multiple
// of.
RC_GTEST_PROP(SequenceTables, AutoStaysInsideTheWindowFromAnyFill, (std::uint64_t seed)) {
  std::mt19937_64 generator(seed);
  const auto pick = [&](std::int64_t least, std::int64_t most) {
    return least +
           static_cast<std::int64_t>(generator() % static_cast<std::uint64_t>(most - least + 1));
  };
  BlockPools pools = Pools(1);
  const std::int64_t most_step = pick(1, 40);
  const std::int64_t window = pick(64 + 2 * (40 + kBlock), 300);
  SequenceTables tables(1, kBlock,
                        {.policy = PositionPolicy::kAuto,
                         .rotation = Rotation::kQuery,
                         .trained_window = window,
                         .max_step_tokens = most_step});
  while (tables.logical_length().value < 4 * window) {
    while (tables.table(0).resident_tokens() > 64) {
      const std::int64_t victim = pick(0, 3);
      tables.Evict(0, {&victim, 1}, pools.of(0));
    }
    const std::int64_t tokens = tables.LimitStep(pick(1, most_step));
    RC_ASSERT(tokens > 0);
    tables.BeginStep(tokens);
    tables.Append(tokens, pools);
    RC_ASSERT(tables.next_written().value <= window);
    tables.CheckIntegrity();
  }
  RC_ASSERT(tables.mode() == PositionPolicy::kCompact);
}

TEST(SequenceTables, RecentBlocksHaveNoShiftUntilTheBaseMoves) {
  BlockPools pools = Pools(1);
  SequenceTables tables(1, kBlock,
                        {.policy = PositionPolicy::kCompact,
                         .rotation = Rotation::kQuery,
                         .trained_window = 100000,
                         .max_step_tokens = 8});
  for (int i = 0; i < 1000; ++i) {
    if (tables.table(0).resident_tokens() > 64) {
      const std::int64_t victim = 2;
      tables.Evict(0, {&victim, 1}, pools.of(0));
    }
    tables.BeginStep(8);
    tables.Append(8, pools);
    const auto count = static_cast<std::int64_t>(tables.table(0).entries().size());
    for (std::int64_t entry = std::max<std::int64_t>(2, count - 4); entry < count; ++entry) {
      ASSERT_EQ(tables.ShiftOf(0, entry), 0);
    }
  }
  EXPECT_NE(tables.ShiftOf(0, 0), 0);  // the start area is nearer than it was written
}

// Query rotation writes nothing: a million evictions later every survivor's bytes are what they
// were.
TEST(SequenceTables, AMillionEvictionsLeaveEveryKeyBitIdentical) {
  BlockPools pools = Pools(1);
  SequenceTables tables(1, kBlock,
                        {.policy = PositionPolicy::kCompact,
                         .rotation = Rotation::kQuery,
                         .trained_window = 4096,
                         .max_step_tokens = kBlock});
  const auto fill = [&](std::byte* data, std::int64_t logical) {
    for (std::size_t i = 0; i < Shape().bytes(); i += 8) {
      const std::uint64_t word = static_cast<std::uint64_t>(logical) * 0x9E3779B97F4A7C15U + i;
      std::memcpy(data + i, &word, 8);
    }
  };
  std::vector<std::byte> expected(Shape().bytes());
  std::int64_t evictions = 0;
  std::uint64_t random = 1;
  while (evictions < 1000000) {
    tables.BeginStep(kBlock);
    tables.Append(kBlock, pools);
    const TableEntry& written = tables.table(0).entries().back();
    fill(pools.of(0).data(written.block), written.logical.value);
    const auto count = static_cast<std::int64_t>(tables.table(0).entries().size());
    if (count > 16) {
      random = random * 6364136223846793005U + 1442695040888963407U;
      const auto victim = static_cast<std::int64_t>(1 + (random >> 33) % 12);
      tables.Evict(0, {&victim, 1}, pools.of(0));
      ++evictions;
    }
  }
  for (const TableEntry& entry : tables.table(0).entries()) {
    fill(expected.data(), entry.logical.value);
    EXPECT_EQ(std::memcmp(pools.of(0).data(entry.block), expected.data(), expected.size()), 0);
  }
  tables.CheckIntegrity();
}

TEST(SequenceTables, AppendIsAllOrNothing) {
  BlockPools pools = Pools(3, 10);
  SequenceTables tables(3, kBlock, {});
  tables.Append(3 * kBlock, pools);  // 9 of 10 blocks
  EXPECT_THROW(tables.Append(1, pools), Error);
  EXPECT_EQ(tables.logical_length().value, 3 * kBlock);
  EXPECT_EQ(pools.of(0).blocks_in_use(), 9);
  tables.CheckIntegrity();
}

TEST(SequenceTables, AutoKeepsUntilTheWindowEnds) {
  BlockPools pools = Pools(1);
  SequenceTables tables(1, kBlock,
                        {.policy = PositionPolicy::kAuto,
                         .rotation = Rotation::kQuery,
                         .trained_window = 64,
                         .max_step_tokens = 8});
  for (int i = 0; i < 20; ++i) {
    if (tables.table(0).resident_tokens() > 32) {
      const std::int64_t victim = 1;
      tables.Evict(0, {&victim, 1}, pools.of(0));
    }
    const bool fits = tables.logical_length().value + 8 <= 64;
    tables.BeginStep(8);
    EXPECT_EQ(tables.mode(), fits ? PositionPolicy::kKeep : PositionPolicy::kCompact);
    tables.Append(8, pools);
    EXPECT_LE(tables.next_written().value, 64);
  }
}

// Recalled blocks stand where they would if the table had never lost them.
RC_GTEST_PROP(SequenceTables, MergesRecalledBlocksAsAListOfTokens,
              (std::vector<std::uint16_t> actions)) {
  const auto policy =
      *rc::gen::element(PositionPolicy::kAuto, PositionPolicy::kKeep, PositionPolicy::kCompact);
  BlockPools pools = Pools(1);
  SequenceTables tables(1, kBlock,
                        {.policy = policy,
                         .rotation = Rotation::kQuery,
                         .trained_window = *rc::gen::element(0, 100, 300),
                         .max_step_tokens = 24});
  std::vector<RecalledBlock> evicted;
  for (const std::uint16_t action : actions) {
    const std::int64_t full = tables.table(0).resident_tokens() / kBlock;
    if (action % 3 == 0 && full > 0) {
      const std::int64_t victim = action / 3 % full;
      const TableEntry& entry = tables.table(0).entries()[static_cast<std::size_t>(victim)];
      evicted.push_back({.written = entry.written, .logical = entry.logical});
      tables.Evict(0, {&victim, 1}, pools.of(0));
      continue;
    }
    const std::int64_t tokens = tables.LimitStep(1 + action % 24);
    tables.BeginStep(tokens);
    tables.Append(tokens, pools);

    std::vector<RecalledBlock> recalled;
    for (std::size_t i = 0; i < evicted.size(); ++i) {
      if ((action >> (i % 16)) % 2 == 1) recalled.push_back(evicted[i]);
    }
    std::sort(recalled.begin(), recalled.end(),
              [](const auto& left, const auto& right) { return left.logical < right.logical; });
    // {logical, written} of every first token, in stream order.
    std::vector<NaiveToken> naive;
    for (const TableEntry& entry : tables.table(0).entries())
      naive.push_back({entry.logical.value, entry.written.value});
    for (const RecalledBlock& block : recalled)
      naive.push_back({block.logical.value, block.written.value});
    std::sort(naive.begin(), naive.end(),
              [](const auto& left, const auto& right) { return left.logical < right.logical; });

    std::vector<BlockPlacement> merged;
    tables.Merge(0, recalled, &merged);
    RC_ASSERT(merged.size() == naive.size());
    const Position next = tables.NextAttentionPosition(0, std::ssize(recalled));
    const bool keeps = tables.mode() == PositionPolicy::kKeep;
    RC_ASSERT(next.value ==
              (keeps ? tables.logical_length().value
                     : tables.table(0).resident_tokens() + std::ssize(recalled) * kBlock));
    for (std::size_t i = 0; i < merged.size(); ++i) {
      const std::size_t index = static_cast<std::size_t>(merged[i].index);
      const Position logical =
          merged[i].recalled ? recalled[index].logical : tables.table(0).entries()[index].logical;
      RC_ASSERT(logical.value == naive[i].logical);
      RC_ASSERT(merged[i].attention.value ==
                (keeps ? naive[i].logical : static_cast<std::int64_t>(i) * kBlock));
      RC_ASSERT(tables.next_written().value - naive[i].written + merged[i].shift ==
                next - merged[i].attention);
      if (!merged[i].recalled) continue;
      const BlockPlacement far = tables.CandidatePlacement(0, recalled[index]);
      RC_ASSERT(far.attention.value == (keeps ? naive[i].logical : 0));
      RC_ASSERT(tables.next_written().value - naive[i].written + far.shift ==
                tables.NextAttentionPosition(0) - far.attention);
      RC_ASSERT(far.shift % kBlock == 0);
    }
    if (recalled.empty()) {
      for (std::size_t i = 0; i < merged.size(); ++i)
        RC_ASSERT(merged[i].shift == tables.ShiftOf(0, static_cast<std::int64_t>(i)));
    }
  }
  tables.Clear(pools);
}

}  // namespace
}  // namespace carousel
