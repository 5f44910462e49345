// SPDX-License-Identifier: Apache-2.0
// What a configuration becomes on models that rotate, do not rotate, or cannot be rotated.
#include "engine/settings.h"

#include <gtest/gtest.h>

#include "carousel/error.h"
#include "carousel/single_sequence_engine.h"
#include "engine/tiny_model.h"
#include "testing/advice.h"

namespace carousel {
namespace {

EngineConfig SmallConfig() {
  EngineConfig config;
  config.cache.block_size = 8;
  config.chunk_size = 32;
  config.eviction = EvictionConfig{.start_size = 8, .recent_size = 16, .max_cache_size = 64};
  return config;
}

EngineSettings SettleFor(TinyModelOptions options, const EngineConfig& config) {
  TinyModel model(options);
  return Settle(model, config);
}

void ExpectRefused(const TinyModelOptions& options, const EngineConfig& config,
                   const std::string& field) {
  try {
    SettleFor(options, config);
    ADD_FAILURE() << "accepted";
  } catch (const Error& error) {
    EXPECT_EQ(error.field(), field) << error.what();
  }
}

TEST(Settle, RopeModelRotatesQueries) {
  for (const Pairing pairing : {Pairing::kHalves, Pairing::kNeighbours}) {
    const EngineSettings settings = SettleFor({.pairing = pairing}, SmallConfig());
    EXPECT_EQ(settings.rules.rotation, Rotation::kQuery);
    EXPECT_EQ(settings.rules.policy, PositionPolicy::kAuto);
    ASSERT_EQ(settings.rope.layers.size(), 2U);
    EXPECT_EQ(settings.rope.layers[0].pairing, pairing);
    EXPECT_EQ(settings.rope.layers[0].rotated_dims, 16);
    EXPECT_NE(settings.rotation_reason.find("theta"), std::string::npos)
        << settings.rotation_reason;
  }
}

TEST(Settle, AutoIsCompactWhereBlocksAreRecalled) {
  EngineConfig config = SmallConfig();
  config.recall.blocks = 2;
  EXPECT_EQ(SettleFor({}, config).rules.policy, PositionPolicy::kCompact);
  config.eviction->positions = PositionPolicy::kKeep;
  EXPECT_EQ(SettleFor({}, config).rules.policy, PositionPolicy::kKeep);
  // Key rotation recalls nothing, where that is no fault.
  config.eviction->positions = PositionPolicy::kAuto;
  config.eviction->rotation = Rotation::kKeys;
  config.recall.yields = true;
  EXPECT_EQ(SettleFor({}, config).rules.policy, PositionPolicy::kAuto);
}

TEST(Settle, RotationOffKeepsPositions) {
  EngineConfig config = SmallConfig();
  config.eviction->rotation = Rotation::kOff;
  const EngineSettings settings = SettleFor({}, config);
  EXPECT_EQ(settings.rules.rotation, Rotation::kOff);
  EXPECT_EQ(settings.rules.policy, PositionPolicy::kKeep);
  EXPECT_FALSE(settings.rope.layers[0].rotates());
  config.eviction->positions = PositionPolicy::kCompact;
  ExpectRefused({}, config, "positions");
}

TEST(Settle, WithoutRopeCompactNeedsNoRotation) {
  EngineConfig config = SmallConfig();
  config.eviction->positions = PositionPolicy::kCompact;
  config.eviction->rotation = Rotation::kQuery;  // the identity here
  const EngineSettings settings = SettleFor({.rope_theta = 0.0, .alibi = true}, config);
  EXPECT_EQ(settings.rules.rotation, Rotation::kOff);
  EXPECT_EQ(settings.rules.policy, PositionPolicy::kCompact);
}

TEST(Settle, LayersWithAWindowKeepIt) {
  EngineConfig config = SmallConfig();  // 64 tokens in blocks of 8, chunks of 32
  const TinyModelOptions options{.sliding_window = {20, 0}};
  const EngineSettings settings = SettleFor(options, config);
  // 20 tokens touch 3 blocks, and one more stands half inside.
  EXPECT_EQ(settings.max_cache_size, (std::vector<std::int64_t>{32, 64}));
  EXPECT_EQ(settings.reserved_blocks, (std::vector<std::int64_t>{9, 13}));
  // A window that passes the trained one is none.
  EXPECT_EQ(SettleFor({.sliding_window = {500, 0}}, config).max_cache_size,
            (std::vector<std::int64_t>{64, 64}));
  // The limit in tokens is the layers' that see everything; windows only have what they need.
  config.cache.limit_tokens = 200;
  const EngineSettings limited = SettleFor(options, config);
  const auto block_bytes = static_cast<std::int64_t>(limited.shapes[0].bytes());
  EXPECT_EQ(limited.limit_bytes, (25 + 9) * block_bytes);
  // One budget covers both kinds.
  config.cache.limit_tokens = 0;
  config.cache.limit_bytes = (9 + 13) * block_bytes;
  EXPECT_NO_THROW(SingleSequenceEngine::Create(std::make_unique<TinyModel>(options), config));
  config.cache.limit_bytes -= 1;
  EXPECT_THROW(SingleSequenceEngine::Create(std::make_unique<TinyModel>(options), config), Error);
}

TEST(Settle, TheTrainedWindowLimitsLayersWithoutAWindow) {
  EngineConfig config = SmallConfig();
  config.eviction->max_cache_size = 480;  // with a chunk and a block past 512
  ExpectRefused({.sliding_window = {20, 0}}, config, "max_cache_size");
  EXPECT_NO_THROW(SettleFor({.sliding_window = {20, 24}}, config));
}

TEST(Settle, WhatTheProbeRefusesIsNotRotated) {
  const TinyModelOptions absolute{.absolute_positions = true};
  EngineConfig config = SmallConfig();
  const EngineSettings settings = SettleFor(absolute, config);
  EXPECT_EQ(settings.rules.rotation, Rotation::kOff);
  EXPECT_EQ(settings.rules.policy, PositionPolicy::kKeep);
  config.eviction->rotation = Rotation::kQuery;
  ExpectRefused(absolute, config, "rotation");
  config.eviction->rotation = Rotation::kKeys;
  ExpectRefused(absolute, config, "rotation");
}

TEST(Settle, TheCacheMustFitTheTrainedWindow) {
  EngineConfig config = SmallConfig();
  config.eviction->max_cache_size = 480;  // and a chunk of 32 and a block of 8: 520 > 512
  ExpectRefused({}, config, "max_cache_size");
  config.eviction->max_cache_size = 472;
  EXPECT_NO_THROW(SettleFor({}, config));
  config.eviction->max_cache_size = 4800;
  config.eviction->positions = PositionPolicy::kKeep;  // asked for: the user's own doing
  EXPECT_NO_THROW(SettleFor({}, config));
}

// Room for 9 blocks of 8: 512 less 400 in the cache, a chunk of 32 and a block begun.
TEST(Settle, RecallThatYieldsTakesTheRoomThatIsLeft) {
  EngineConfig config = SmallConfig();
  config.eviction->max_cache_size = 400;
  config.recall.blocks = 20;
  ExpectRefused({}, config, "max_cache_size");
  config.recall.yields = true;
  EXPECT_EQ(SettleFor({}, config).config.recall.blocks, 9);
  config.recall.blocks = 3;
  EXPECT_EQ(SettleFor({}, config).config.recall.blocks, 3);
  config.eviction->max_cache_size = 472;
  const EngineSettings none = SettleFor({}, config);
  EXPECT_EQ(none.config.recall.blocks, 0);
  EXPECT_TRUE(none.recall_lanes.empty());
  config.eviction->max_cache_size = 400;
  config.eviction->rotation = Rotation::kKeys;
  EXPECT_EQ(SettleFor({}, config).config.recall.blocks, 0);
  config.recall.yields = false;
  ExpectRefused({}, config, "recall_blocks");
}

TEST(Settle, AnUnknownWindowCompactsFromTheStart) {
  const EngineSettings settings = SettleFor({.trained_window = 0}, SmallConfig());
  EXPECT_EQ(settings.rules.policy, PositionPolicy::kCompact);
  EXPECT_GT(settings.rules.trained_window, 64 + 32);
}

TEST(Settle, LimitsInTokensAndBytes) {
  EngineConfig config = SmallConfig();
  config.cache.limit_tokens = 100;  // 13 blocks in each of 2 layers
  const EngineSettings settings = SettleFor({}, config);
  EXPECT_EQ(settings.limit_bytes, 2 * 13 * static_cast<std::int64_t>(settings.shapes[0].bytes()));
  config.cache.limit_bytes = settings.limit_bytes + 1000;
  EXPECT_EQ(SettleFor({}, config).limit_bytes, settings.limit_bytes);
  config.cache.limit_tokens = 200;
  EXPECT_EQ(SettleFor({}, config).limit_bytes, settings.limit_bytes + 1000);
}

TEST(Settle, LimitsThatAreTooSmallSayWhatWouldDo) {
  const auto least = [](const EngineConfig& config, const std::string& field) {
    try {
      SettleFor({.sliding_window = {20, 0}}, config);
    } catch (const Error& error) {
      EXPECT_EQ(error.field(), field);
      return static_cast<std::int64_t>(ProposedNumbers(error.problem()).back());
    }
    return std::int64_t{0};
  };
  for (const std::int64_t limit : {1, 100, 1000}) {
    EngineConfig config = SmallConfig();
    config.cache.limit_bytes = limit;
    const std::int64_t bytes = least(config, "limit_bytes");
    config.cache.limit_bytes = bytes;
    EXPECT_EQ(least(config, ""), 0);
    config.cache.limit_bytes = bytes - 1;
    EXPECT_EQ(least(config, "limit_bytes"), bytes);
  }
  EngineConfig config = SmallConfig();
  config.cache.limit_tokens = 1;
  EXPECT_EQ(least(config, "limit_tokens"), 104);  // 64, a chunk of 32, a block begun
  config.cache.limit_tokens = 104;
  EXPECT_EQ(least(config, ""), 0);
}

TEST(Settle, OneSizePerLayerOrNone) {
  EngineConfig config = SmallConfig();
  config.eviction->layer_max_cache_size = {64};
  ExpectRefused({}, config, "layer_max_cache_size");
  config.eviction->layer_max_cache_size = {64, 96};
  EXPECT_EQ(SettleFor({}, config).max_cache_size, (std::vector<std::int64_t>{64, 96}));
}

TEST(Settle, WithoutEvictionNothingIsProbed) {
  EngineConfig config = SmallConfig();
  config.eviction.reset();
  const EngineSettings settings = SettleFor({.absolute_positions = true}, config);
  EXPECT_EQ(settings.rules.rotation, Rotation::kOff);
  EXPECT_TRUE(settings.max_cache_size.empty());
}

}  // namespace
}  // namespace carousel
