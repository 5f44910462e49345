// SPDX-License-Identifier: Apache-2.0
#include "cache/block_pool.h"

#include <gtest/gtest.h>
#include <rapidcheck/gtest.h>

#include <algorithm>
#include <map>
#include <set>

#include "cache/block_pools.h"
#include "carousel/error.h"

namespace carousel {
namespace {

BlockShape SmallShape(std::int64_t key_dim = 16) {
  return {.block_size = 8, .kv_heads = 1, .key_dim = key_dim, .value_dim = 16};
}

// Against the naive pool: a set of ids. In use plus free is reserved, no id is handed out twice,
// memory stays.
RC_GTEST_PROP(BlockPool, BehavesAsASet, (std::vector<std::uint8_t> actions)) {
  ByteBudget budget(static_cast<std::int64_t>(20 * SmallShape().bytes()));
  BlockPool pool(SmallShape(), &budget);
  std::map<std::int32_t, std::byte> live;
  for (const std::uint8_t action : actions) {
    if (action % 3 != 0 || live.empty()) {
      const auto block = pool.Allocate();
      RC_ASSERT(block.has_value() == (live.size() < 20));
      if (!block) continue;
      RC_ASSERT(!live.contains(block->value));
      live[block->value] = std::byte{action};
      std::fill_n(pool.data(*block), pool.shape().bytes(), std::byte{action});
    } else {
      const auto victim =
          std::next(live.begin(), action % static_cast<std::ptrdiff_t>(live.size()));
      pool.Free(BlockId{victim->first});
      live.erase(victim);
    }
    RC_ASSERT(pool.blocks_in_use() == static_cast<std::int64_t>(live.size()));
    RC_ASSERT(pool.blocks_in_use() + pool.blocks_free() == pool.blocks_reserved());
    RC_ASSERT(budget.used() <= budget.limit());
    for (const auto& [id, byte] : live) {
      const std::byte* data = pool.data(BlockId{id});
      RC_ASSERT(
          std::all_of(data, data + pool.shape().bytes(), [&](std::byte b) { return b == byte; }));
    }
  }
}

// Two shapes under one limit. A block is refused only where the limit has no room for it beside
// blocks in use and the slabs that they lie in; what is in use stays as it is.
RC_GTEST_PROP(BlockPools, FreeSlabsOfOneShapeMakeRoomForAnother,
              (std::vector<std::uint16_t> actions)) {
  const std::vector<BlockShape> shapes = {SmallShape(), SmallShape(48)};
  const auto limit = static_cast<std::int64_t>(5 * shapes[0].bytes() + 4 * shapes[1].bytes());
  BlockPools pools(shapes, limit);
  std::map<std::int32_t, std::byte> live[2];
  for (const std::uint16_t action : actions) {
    const std::int64_t group = action % 2;
    BlockPool& pool = pools.of(group);
    auto& own = live[group];
    auto& others = live[1 - group];
    // In runs, so that a shape comes to have all of it and then none.
    if (action % 32 < 20) {
      const auto block = pool.Allocate();
      if (!block) {
        RC_ASSERT(!others.empty() || pool.blocks_in_use() == pool.blocks_reserved());
        continue;
      }
      RC_ASSERT(!own.contains(block->value));
      own[block->value] = static_cast<std::byte>(action);
      std::fill_n(pool.data(*block), pool.shape().bytes(), static_cast<std::byte>(action));
    } else {
      for (const auto& [id, byte] : own) pool.Free(BlockId{id});
      own.clear();
    }
    RC_ASSERT(pools.bytes_reserved() <= limit);
    RC_ASSERT(pool.blocks_in_use() + pool.blocks_free() == pool.blocks_reserved());
    for (std::int64_t of = 0; of < 2; ++of) {
      for (const auto& [id, byte] : live[of]) {
        const std::byte* data = pools.of(of).data(BlockId{id});
        RC_ASSERT(
            std::all_of(data, data + shapes[of].bytes(), [&](std::byte b) { return b == byte; }));
      }
    }
  }
}

// What was full of one shape can be filled with another, and again with the first.
TEST(BlockPools, AShapeGivesAllOfTheLimitBack) {
  const std::vector<BlockShape> shapes = {SmallShape(), SmallShape(48)};
  const auto limit = static_cast<std::int64_t>(12 * shapes[0].bytes());
  BlockPools pools(shapes, limit);
  for (int round = 0; round < 3; ++round) {
    for (std::int64_t group = 0; group < 2; ++group) {
      const auto most = limit / static_cast<std::int64_t>(shapes[group].bytes());
      std::vector<BlockId> blocks;
      while (const auto block = pools.of(group).Allocate()) blocks.push_back(*block);
      EXPECT_EQ(std::ssize(blocks), most);
      for (const BlockId block : blocks) pools.of(group).Free(block);
    }
  }
  EXPECT_EQ(pools.bytes_in_use(), 0);
}

// One block pins its slab: the other shape gets the rest of the limit, and no error.
TEST(BlockPools, ASlabInUseStays) {
  const std::vector<BlockShape> shapes = {SmallShape(), SmallShape(48)};
  BlockPools pools(shapes, static_cast<std::int64_t>(12 * shapes[0].bytes()));
  pools.of(0).Reserve(6);
  const BlockId block = *pools.of(0).Allocate();
  std::int64_t others = 0;
  while (pools.of(1).Allocate()) ++others;
  EXPECT_EQ(others, static_cast<std::int64_t>(6 * shapes[0].bytes() / shapes[1].bytes()));
  EXPECT_EQ(pools.of(0).blocks_reserved(), 6);
  pools.of(0).Free(block);
  EXPECT_TRUE(pools.of(1).Allocate().has_value());
  EXPECT_EQ(pools.of(0).blocks_reserved(), 0);
}

TEST(BlockPool, ReserveIsAllOrNothing) {
  ByteBudget budget(static_cast<std::int64_t>(10 * SmallShape().bytes()));
  BlockPool pool(SmallShape(), &budget);
  EXPECT_THROW(pool.Reserve(11), Error);
  EXPECT_EQ(pool.blocks_reserved(), 0);
  EXPECT_EQ(budget.used(), 0);
  pool.Reserve(10);
  EXPECT_EQ(pool.blocks_reserved(), 10);
  for (int i = 0; i < 10; ++i) EXPECT_TRUE(pool.Allocate().has_value());
  EXPECT_FALSE(pool.Allocate().has_value());
}

TEST(BlockPool, MoreThanTheMachineHasIsAnError) {
  ByteBudget budget(0);
  BlockPool pool(SmallShape(), &budget);
  try {
    pool.Reserve(std::int64_t{1} << 40);
    FAIL();
  } catch (const Error& error) {
    EXPECT_EQ(error.code(), ErrorCode::kOutOfMemory);
    EXPECT_NE(error.problem().find("lower"), std::string::npos);
  }
  EXPECT_EQ(budget.used(), 0);
  EXPECT_TRUE(pool.Allocate().has_value());
}

TEST(BlockPoolDeathTest, FreeingTwiceIsABug) {
  ByteBudget budget(0);
  BlockPool pool(SmallShape(), &budget);
  const BlockId block = *pool.Allocate();
  pool.Free(block);
  EXPECT_DEATH(pool.Free(block), "CHECK");
}

TEST(BlockPools, EqualShapesShareAPool) {
  const std::vector<BlockShape> shapes = {SmallShape(), SmallShape(32), SmallShape()};
  BlockPools pools(shapes, 0);
  EXPECT_EQ(&pools.of(0), &pools.of(2));
  EXPECT_NE(&pools.of(0), &pools.of(1));
  pools.Reserve(std::vector<std::int64_t>{2, 3, 4});
  EXPECT_EQ(pools.of(0).blocks_reserved(), 6);
  EXPECT_EQ(pools.of(1).blocks_reserved(), 3);
  EXPECT_EQ(pools.bytes_in_use(), 0);
  EXPECT_EQ(pools.bytes_reserved(),
            static_cast<std::int64_t>(6 * shapes[0].bytes() + 3 * shapes[1].bytes()));
}

}  // namespace
}  // namespace carousel
