// SPDX-License-Identifier: Apache-2.0
// Sizes and trained windows of every size: what yields is made to fit, and what is refused says how
// it would not be.
#include "engine/window_fit.h"

#include <gtest/gtest.h>
#include <rapidcheck/gtest.h>

#include "carousel/error.h"
#include "carousel/single_sequence_engine.h"
#include "engine/settings.h"
#include "engine/tiny_model.h"
#include "testing/advice.h"

namespace carousel {
namespace {

// As the program's defaults are.
EngineConfig Defaults() {
  EngineConfig config{.yields = kAllSizesYield};
  config.recall.blocks = 8;
  config.recall.yields = true;
  return config;
}

EngineSettings SettleFor(std::int64_t window, const EngineConfig& config) {
  TinyModel model({.trained_window = window});
  return Settle(model, config);
}

struct Sizes {
  std::int64_t block, start, recent, max, chunk, recall;
  bool operator==(const Sizes&) const = default;
};

std::ostream& operator<<(std::ostream& out, const Sizes& sizes) {
  return out << sizes.block << " " << sizes.start << "/" << sizes.recent << "/" << sizes.max << " "
             << sizes.chunk << " " << sizes.recall;
}

Sizes SizesOf(const EngineConfig& config) {
  return {.block = config.cache.block_size,
          .start = config.eviction->start_size,
          .recent = config.eviction->recent_size,
          .max = config.eviction->max_cache_size,
          .chunk = config.chunk_size,
          .recall = config.recall.blocks};
}

TEST(FitSizes, TheDefaultsFitEveryWindow) {
  const struct {
    std::int64_t window;
    Sizes sizes;
  } cases[] = {
      {64, {.block = 8, .start = 8, .recent = 8, .max = 32, .chunk = 16, .recall = 1}},
      {128, {.block = 8, .start = 8, .recent = 16, .max = 72, .chunk = 32, .recall = 2}},
      {256, {.block = 16, .start = 16, .recent = 32, .max = 144, .chunk = 64, .recall = 2}},
      {512, {.block = 32, .start = 32, .recent = 64, .max = 288, .chunk = 128, .recall = 2}},
      {1024, {.block = 32, .start = 32, .recent = 128, .max = 672, .chunk = 256, .recall = 2}},
      {8192, {.block = 32, .start = 32, .recent = 128, .max = 672, .chunk = 256, .recall = 8}},
  };
  for (const auto& expected : cases) {
    EXPECT_EQ(SizesOf(SettleFor(expected.window, Defaults()).config), expected.sizes)
        << expected.window;
  }
  // An unknown window binds nobody.
  EXPECT_EQ(SizesOf(SettleFor(0, Defaults()).config).max, 672);
}

// They do not only pass: the model runs in them, long past its window.
TEST(FitSizes, TheDefaultsRunInEveryWindow) {
  for (const std::int64_t window : {64, 128, 256, 512}) {
    const auto engine = SingleSequenceEngine::Create(
        std::make_unique<TinyModel>(TinyModelOptions{.trained_window = window}), Defaults());
    std::vector<TokenId> prompt;
    for (std::int64_t i = 0; i < 2 * window; ++i) prompt.push_back(static_cast<TokenId>(i % 60));
    engine->Submit({.prompt = prompt, .max_new_tokens = 4});
    while (engine->HasWork()) engine->Step();
    EXPECT_GT(engine->metrics().evicted_tokens, window);
  }
}

TEST(FitSizes, WhatWasAskedForStaysAndTheRestGivesWay) {
  EngineConfig config = Defaults();
  config.chunk_size = 256;
  config.yields.chunk_size = false;
  EXPECT_EQ(SizesOf(SettleFor(512, config).config),
            (Sizes{.block = 32, .start = 32, .recent = 64, .max = 224, .chunk = 256, .recall = 0}));
  config = Defaults();
  config.eviction->max_cache_size = 416;
  config.yields.max_cache_size = false;
  EXPECT_EQ(SizesOf(SettleFor(512, config).config),
            (Sizes{.block = 32, .start = 32, .recent = 128, .max = 416, .chunk = 64, .recall = 0}));
  config = Defaults();
  config.recall.yields = false;  // eight blocks
  EXPECT_EQ(SizesOf(SettleFor(512, config).config),
            (Sizes{.block = 32, .start = 32, .recent = 64, .max = 128, .chunk = 96, .recall = 8}));
  // A small cache in a large window: the areas in which nothing is evicted give way to it.
  config = Defaults();
  config.eviction->max_cache_size = 96;
  config.yields.max_cache_size = false;
  EXPECT_EQ(SizesOf(SettleFor(8192, config).config),
            (Sizes{.block = 32, .start = 32, .recent = 32, .max = 96, .chunk = 256, .recall = 8}));
  // With positions kept there is no such bound.
  config = Defaults();
  config.eviction->positions = PositionPolicy::kKeep;
  EXPECT_EQ(SizesOf(SettleFor(512, config).config).max, 672);
}

TEST(FitSizes, SizesThatWereAskedForAreRefusedWithOneThatFits) {
  const auto problem = [](std::int64_t window, const EngineConfig& config) -> std::string {
    try {
      SettleFor(window, config);
    } catch (const Error& error) {
      return error.what();
    }
    return "";
  };
  EXPECT_EQ(problem(512, EngineConfig{}),
            "max_cache_size: 672 and a chunk of 256 can come to 960 positions, more than the 512 "
            "that the model was trained on; use at most 224");
  EngineConfig config;
  config.recall.blocks = 2;
  EXPECT_EQ(problem(512, config),
            "chunk_size: 256 leaves no room for a cache: with the least one it comes to 544 "
            "positions, more than the 512 that the model was trained on; use at most 224");
  EXPECT_NE(problem(128, EngineConfig{}).find("block_size: 32 leaves"), std::string::npos)
      << problem(128, EngineConfig{});
  EXPECT_NE(problem(32, Defaults()).find("turn eviction off"), std::string::npos);
  // A layer's sliding window is not the cache's doing, and nothing is recalled beside it.
  TinyModel model({.trained_window = 512, .sliding_window = {300, 0}});
  config = {.chunk_size = 64};
  config.cache.block_size = 32;
  config.eviction->max_cache_size = 288;
  config.recall.blocks = 4;
  EXPECT_NO_THROW(Settle(model, config));
}

// Random sizes; each may yield or not.
EngineConfig AnyConfig() {
  const auto size = [](std::int64_t most) {
    return *rc::gen::oneOf(rc::gen::inRange<std::int64_t>(-8, most),
                           rc::gen::map(rc::gen::inRange<std::int64_t>(1, most / 8 + 1),
                                        [](std::int64_t blocks) { return 8 * blocks; }));
  };
  const auto flag = [] { return *rc::gen::arbitrary<bool>(); };
  EngineConfig config;
  config.cache.block_size = *rc::gen::element<std::int64_t>(8, 16, 24, 32, 48, 128, 31, 0, 300);
  config.cache.key_type = *rc::gen::element(KvType::kF16, KvType::kInt4);
  config.chunk_size = size(700);
  EvictionConfig& eviction = *config.eviction;
  eviction.start_size = size(300);
  eviction.recent_size = size(500);
  eviction.max_cache_size = size(2000);
  eviction.budget = *rc::gen::element(Budget::kUniform, Budget::kPyramid, Budget::kAdaptive);
  if (*rc::gen::inRange(0, 4) == 0 && eviction.budget != Budget::kPyramid)
    eviction.layer_max_cache_size = {size(2000), size(2000)};
  eviction.pooling_width = *rc::gen::inRange(-1, 1030);
  eviction.expected_positions = *rc::gen::inRange(-1, 70000);
  config.recall.blocks = *rc::gen::inRange(-1, 20);
  config.recall.yields = flag();
  config.recall.limit_tokens = size(100);
  config.yields = {.block_size = flag(),
                   .chunk_size = flag(),
                   .start_size = flag(),
                   .recent_size = flag(),
                   .max_cache_size = flag()};
  return config;
}

std::optional<Error> ErrorOf(const ModelSpec& spec, const EngineConfig& config,
                             const RopeProbeResult& probe) {
  try {
    Settle(spec, config, probe);
    return std::nullopt;
  } catch (const Error& error) {
    return error;
  }
}

std::optional<Error> ErrorWithoutModel(const EngineConfig& config) {
  try {
    Validate(config);
    return std::nullopt;
  } catch (const Error& error) {
    return error;
  }
}

// Whatever an error proposes is accepted where it is followed, by Validate what Validate proposed,
// which knows no model; and all of it leads to settings that work.
RC_GTEST_PROP(Advice, IsAcceptedWhenItIsFollowed, ()) {
  TinyModel model({.trained_window = 512});
  static const RopeProbeResult probe = ProbeRope(model, {.tokens = {}, .trained_window = 512});
  ModelSpec spec = model.spec();
  spec.trained_window = *rc::gen::element<std::int64_t>(48, 64, 100, 256, 512, 1000, 4096);
  EngineConfig config = AnyConfig();
  for (int followed = 0; followed < 25; ++followed) {
    const bool without_model = ErrorWithoutModel(config).has_value();
    const std::optional<Error> error = ErrorOf(spec, config, probe);
    if (!error) return;
    if (error->field() == "eviction") return;  // no cache fits
    RC_LOG() << error->what() << std::endl;
    const std::vector<double> numbers = ProposedNumbers(error->problem());
    RC_ASSERT(!numbers.empty());
    for (const double number : numbers) {
      const auto mended = WithField(config, error->field(), number);
      RC_ASSERT(mended.has_value());
      const std::optional<Error> next =
          without_model ? ErrorWithoutModel(*mended) : ErrorOf(spec, *mended, probe);
      if (next && next->field() == error->field())
        RC_FAIL(std::string("refused next: ") + next->what());
    }
    config = *WithField(config, error->field(),
                        numbers[*rc::gen::inRange<std::size_t>(0, numbers.size())]);
  }
  RC_FAIL("never accepted");
}

}  // namespace
}  // namespace carousel
