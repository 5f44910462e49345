// SPDX-License-Identifier: Apache-2.0
#include "attention/work.h"

#include <gtest/gtest.h>

#include <algorithm>
#include <map>
#include <tuple>

namespace carousel {
namespace {

TEST(SplitRange, CoversEverythingOnce) {
  for (std::int64_t blocks = 1; blocks < 40; ++blocks) {
    for (std::int64_t splits = 1; splits <= blocks; ++splits) {
      std::int64_t next = 0;
      for (std::int64_t split = 0; split < splits; ++split) {
        const BlockRange range = SplitRange(blocks, splits, split);
        EXPECT_EQ(range.first, next);
        EXPECT_GT(range.last, range.first);
        next = range.last;
      }
      EXPECT_EQ(next, blocks);
    }
  }
}

TEST(SlotsVisibleTo, FutureAndWindow) {
  AttentionLayerSpec layer;
  const AttentionBlock block{.tokens = 20, .attention = {}, .logical = Position{64}};
  EXPECT_EQ(SlotsVisibleTo(layer, block, Position{63}).end, 0);
  EXPECT_EQ(SlotsVisibleTo(layer, block, Position{64}).end, 1);
  EXPECT_EQ(SlotsVisibleTo(layer, block, Position{90}).end, 20);
  layer.sliding_window = 8;
  const VisibleSlots slots = SlotsVisibleTo(layer, block, Position{80});
  EXPECT_EQ(slots.begin, 9);  // tokens 73..80 are the last eight
  EXPECT_EQ(slots.end, 17);
  const VisibleSlots none = SlotsVisibleTo(layer, block, Position{200});
  EXPECT_EQ(none.begin, none.end);
}

// Every row meets every block that it can see exactly once, however its context is split.
TEST(PlanWork, EveryRowSeesEveryVisibleBlockOnce) {
  for (const std::int64_t dim : {8, 64, 512}) {
    for (const std::int64_t queries : {1, 2, 31, 200}) {
      AttentionLayerSpec layer{.query_heads = 6, .kv_heads = 2, .key_dim = dim, .value_dim = dim};
      const BlockShape shape{.block_size = 16, .kv_heads = 2, .key_dim = dim, .value_dim = dim};
      std::vector<AttentionBlock> blocks;
      for (std::int64_t i = 0; i < 20; ++i) {
        blocks.push_back({.tokens = 16, .attention = {}, .logical = Position{i * 16}});
      }
      const AttentionInput input{.layer = &layer,
                                 .kv_heads = layer.kv_heads,
                                 .block_size = shape.block_size,
                                 .blocks = blocks,
                                 .queries = queries,
                                 .first_query_attention = {},
                                 .first_query_logical = Position{320 - queries}};
      std::vector<WorkItem> items;
      const WorkPlan plan = PlanWork(input, &items);
      EXPECT_EQ(items.size() % static_cast<std::size_t>(plan.splits), 0U);
      std::map<std::tuple<std::int64_t, std::int64_t, std::int64_t>, int> met;
      for (const WorkItem& item : items) {
        EXPECT_LE(item.last_row - item.first_row, plan.tile_rows);
        for (std::int64_t row = item.first_row; row < item.last_row; ++row) {
          for (std::int64_t block = item.first_block; block < item.last_block; ++block) {
            ++met[{item.kv_head, row, block}];
          }
        }
      }
      std::vector<int> grouped(items.size(), 0);
      for (std::int64_t g = 0; g < plan.groups; ++g) {
        const WorkGroup group = plan.group(g, items.data());
        for (std::int64_t i = 0; i < group.count; ++i) {
          ++grouped.at(static_cast<std::size_t>(group.first + i * group.stride));
          EXPECT_EQ(group.item(i).kv_head, group.item(0).kv_head + i);
          EXPECT_EQ(group.item(i).first_row, group.item(0).first_row);
          EXPECT_EQ(group.item(i).last_row, group.item(0).last_row);
          EXPECT_EQ(group.item(i).first_block, group.item(0).first_block);
          EXPECT_EQ(group.item(i).last_block, group.item(0).last_block);
        }
      }
      for (const int times : grouped) EXPECT_EQ(times, 1);
      for (std::int64_t head = 0; head < 2; ++head) {
        for (std::int64_t row = 0; row < queries * 3; ++row) {
          for (std::int64_t block = 0; block < 20; ++block) {
            const bool visible = block * 16 <= 320 - queries + row / 3;
            const auto found = met.find({head, row, block});
            const int times = found == met.end() ? 0 : found->second;
            EXPECT_TRUE(visible ? times == 1 : times <= 1) << head << " " << row << " " << block;
          }
        }
      }
    }
  }
}

// A long context is no one thread's alone, and a short one is not cut into crumbs.
TEST(PlanWork, LongContextsAreSharedAndShortOnesWhole) {
  const AttentionLayerSpec layer{.query_heads = 9, .kv_heads = 3, .key_dim = 64, .value_dim = 64};
  std::int64_t before = 0;
  for (const std::int64_t context : {32, 256, 672, 4096, 65536}) {
    std::vector<AttentionBlock> blocks;
    for (std::int64_t i = 0; i < context; i += 32)
      blocks.push_back({.tokens = 32, .attention = {}, .logical = Position{i}});
    std::vector<WorkItem> items;
    const WorkPlan plan = PlanWork({.layer = &layer,
                                    .kv_heads = layer.kv_heads,
                                    .block_size = 32,
                                    .blocks = blocks,
                                    .queries = 1,
                                    .first_query_attention = {},
                                    .first_query_logical = Position{context - 1}},
                                   &items);
    EXPECT_GE(plan.groups, before);
    before = plan.groups;
    EXPECT_TRUE(context != 32 || plan.groups == 1);
    EXPECT_TRUE(context != 672 || plan.groups >= 4);
    EXPECT_LE(plan.groups, std::max<std::int64_t>(1, context / 128));
  }
}

}  // namespace
}  // namespace carousel
