// SPDX-License-Identifier: Apache-2.0
// A block that leaves the cache without memory to keep it is forgotten, and nothing else.
#include <gtest/gtest.h>

#include <cstring>

#include "engine/recall_state.h"
#include "engine/tiny_model.h"
#include "testing/failing_memory.h"

namespace carousel {
namespace {

using testing::buffers_left;
using testing::kNoEnd;
using testing::objects_left;

// How often recall was refused memory when each block that comes may have so much of it.
std::int64_t Refusals(std::atomic<std::int64_t>* left, std::int64_t granted) {
  constexpr std::int64_t kBlocks = 40;
  TinyModel model({});
  EngineConfig config;
  config.cache.block_size = 8;
  config.eviction = EvictionConfig{.start_size = 8, .recent_size = 16, .max_cache_size = 48};
  config.recall = {.blocks = 2};
  const EngineSettings settings = Settle(model, config);
  TierPools pools({.lanes = settings.recall_lanes});
  RecallState recall(settings, model.spec().layers, &pools);
  RotationTable rotation(settings.rope.layers[0], config.cache.block_size);
  const CacheGroup& group = settings.groups[0];
  const BlockShape& shape = settings.shapes[0];
  AlignedBuffer<std::byte> data(shape.bytes());
  std::memset(data.data(), 0, data.size());
  for (std::int64_t i = 0; i < kBlocks; ++i) {
    const Position at{i * 8};
    *left = granted;
    recall.Store(group, {.written = at, .logical = at, .tokens = 8}, data.data(), shape, &rotation);
    *left = kNoEnd;
    recall.store().CheckIntegrity();
  }
  const RecallStore& store = recall.store();
  for (std::int64_t lane = 0; lane < group.kv_heads; ++lane) {
    EXPECT_EQ(store.blocks(lane) * 8 + store.dropped_tokens(), kBlocks * 8);
  }
  EXPECT_EQ(store.refused_growths() > 0, store.dropped_tokens() > 0);
  return store.refused_growths();
}

TEST(Recall, StoresABlockInAllHeadsOrInNoneWhateverMemoryItLacks) {
  for (std::atomic<std::int64_t>* left : {&objects_left, &buffers_left}) {
    std::int64_t granted = 0;
    while (Refusals(left, granted) > 0) ASSERT_LT(++granted, 100);
    EXPECT_GE(granted, 2);
  }
}

}  // namespace
}  // namespace carousel
