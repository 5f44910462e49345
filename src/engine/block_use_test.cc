// SPDX-License-Identifier: Apache-2.0
#include "engine/block_use.h"

#include <gtest/gtest.h>

#include <memory>
#include <vector>

#include "carousel/engine.h"
#include "engine/tiny_model.h"
#include "testing/random_draws.h"

namespace carousel {
namespace {

constexpr std::int64_t kBlockSize = 8;

// Blocks of which each token was given so much.
std::vector<float> Mass(const std::vector<float>& blocks) {
  std::vector<float> mass;
  for (const float block : blocks) mass.insert(mass.end(), kBlockSize, block);
  return mass;
}

std::vector<std::int64_t> LastUsed(const BlockUse& use, std::int64_t entries) {
  std::vector<std::int64_t> last;
  for (std::int64_t entry = 0; entry < entries; ++entry)
    last.push_back(use.LastUsed(entry) ? use.LastUsed(entry)->value : -1);
  return last;
}

TEST(BlockUse, IsMoreThanAnEvenShareOrANewToken) {
  BlockUse use;
  use.Record(Mass({1.0F, 1.0F, 1.0F}), kBlockSize, Position{24});
  EXPECT_EQ(LastUsed(use, 4), (std::vector<std::int64_t>{24, 24, 24, -1}));
  // Of 8 the even share is 2.
  use.Record(Mass({2.0F, 5.0F, 0.5F, 0.5F}), kBlockSize, Position{32});
  EXPECT_EQ(LastUsed(use, 4), (std::vector<std::int64_t>{24, 32, 24, 32}));
  use.Erase(std::vector<std::int64_t>{1});
  EXPECT_EQ(LastUsed(use, 3), (std::vector<std::int64_t>{24, 24, 32}));
  use.Insert(1);
  EXPECT_EQ(LastUsed(use, 4), (std::vector<std::int64_t>{24, -1, 24, 32}));
  use.Record(Mass({0.0F, 0.0F, 9.0F, 0.0F}), kBlockSize, Position{33});
  EXPECT_EQ(LastUsed(use, 4), (std::vector<std::int64_t>{24, 33, 33, 33}));
  use.Clear();
  EXPECT_EQ(LastUsed(use, 1), (std::vector<std::int64_t>{-1}));
}

TEST(EvictedBlocks, AreCountedOnceInEachGroup) {
  for (const char* policy : {"window", "tova"}) {
    SCOPED_TRACE(policy);
    EngineConfig config;
    config.cache.block_size = kBlockSize;
    config.chunk_size = 16;
    config.eviction = EvictionConfig{.start_size = 8, .recent_size = 16, .max_cache_size = 48};
    config.eviction->policy = policy;
    const auto engine = Engine::Create(std::make_unique<TinyModel>(TinyModelOptions{}), config);
    const SequenceId sequence = engine->Open();
    Generator generator(5);
    engine->Submit(sequence, {.prompt = Tokens(&generator, 200), .max_new_tokens = 1});
    while (engine->HasWork()) engine->Step();
    const EvictedBlocks evicted = engine->metrics().evicted_blocks;
    const std::int64_t blocks = engine->metrics(sequence).evicted_tokens / kBlockSize;
    EXPECT_GT(blocks, 15);
    EXPECT_EQ(evicted.age.count(), engine->cache_groups(sequence) * blocks);
    if (std::string_view(policy) == "window") {
      // The oldest goes: behind it are what may stay and what was just read.
      EXPECT_LE(evicted.age.sum, static_cast<double>(evicted.age.count() * 48));
      EXPECT_GE(evicted.age.sum, static_cast<double>(evicted.age.count() * 16));
      EXPECT_EQ(evicted.idle.count(), 0);
    } else {
      EXPECT_EQ(evicted.idle.count(), evicted.age.count());
      EXPECT_LE(evicted.idle.sum, evicted.age.sum);
      EXPECT_GT(evicted.idle.sum, 0.0);
    }
  }
}

}  // namespace
}  // namespace carousel
