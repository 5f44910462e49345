// SPDX-License-Identifier: Apache-2.0
// The engine against a naive one, over random models and settings: same text in, same likelihoods
// out.
#include <gtest/gtest.h>

#include <initializer_list>
#include <memory>
#include <random>
#include <vector>

#include "carousel/engine.h"
#include "engine/tiny_model.h"
#include "golden/naive_judge.h"
#include "testing/random_cases.h"

namespace carousel {
namespace {

struct Scenario {
  TinyModelOptions model;
  EngineConfig config;
  std::int64_t tokens = 400;
};

Scenario RandomScenario(std::mt19937_64* generator) {
  const auto pick = [&](std::initializer_list<std::int64_t> from) {
    return *(from.begin() + static_cast<std::ptrdiff_t>((*generator)() % from.size()));
  };
  Scenario s;
  s.model.seed = (*generator)();
  s.model.pairing = pick({0, 1}) == 0 ? Pairing::kHalves : Pairing::kNeighbours;
  s.model.alibi = pick({0, 0, 1}) == 1;
  s.model.trained_window = pick({150, 200, 1000});
  if (pick({0, 0, 1}) == 1) s.model.sliding_window = {pick({8, 21, 40}), 0};
  s.config.cache = {.block_size = 8, .key_type = KvType::kF32, .value_type = KvType::kF32};
  s.config.chunk_size = pick({8, 24, 32});
  constexpr PositionPolicy kPolicies[] = {PositionPolicy::kAuto, PositionPolicy::kKeep,
                                          PositionPolicy::kCompact};
  s.config.eviction =
      EvictionConfig{.start_size = 8,
                     .recent_size = pick({8, 24}),
                     .max_cache_size = pick({48, 64, 88}),
                     .aggregation = pick({0, 1}) == 0 ? Aggregation::kSum : Aggregation::kNormSum,
                     .snapkv_window = pick({0, 1, 8}),
                     .pooling_width = pick({1, 7}),
                     .rotation = pick({0, 1}) == 0 ? Rotation::kQuery : Rotation::kKeys,
                     .positions = kPolicies[pick({0, 1, 2})],
                     .grouping = pick({0, 1}) == 0 ? Grouping::kLayer : Grouping::kHead};
  return s;
}

void Compare(const Scenario& s, std::mt19937_64* generator) {
  std::vector<TokenId> tokens;
  for (std::int64_t i = 0; i < s.tokens; ++i)
    tokens.push_back(static_cast<TokenId>((*generator)() % 61));
  const auto engine = Engine::Create(std::make_unique<TinyModel>(s.model), s.config);
  TinyModel naive_model(s.model);
  const LayerRope layer{.pairing = s.model.pairing,
                        .rotated_dims = s.model.key_dim,
                        .frequencies = PlainFrequencies(s.model.rope_theta, s.model.key_dim)};
  const RopeSpec rope{std::vector<LayerRope>(static_cast<std::size_t>(s.model.layers), layer)};
  testing::ExpectSameLikelihoods(*engine, {.model = &naive_model,
                                           .rope = &rope,
                                           .config = &s.config,
                                           .tokens = tokens,
                                           .tolerance = 5e-3});
}

TEST(NaiveEngine, SameLikelihoodsOverRandomScenarios) {
  std::mt19937_64 generator(42);
  for (int i = 0; i < RandomCases(40); ++i) {
    SCOPED_TRACE(i);
    const Scenario s = RandomScenario(&generator);
    Compare(s, &generator);
    if (HasFatalFailure()) return;
  }
}

// Blocks enough to weigh every candidate by its keys, so that both choose by the same numbers.
TEST(NaiveEngine, SameLikelihoodsWithRecall) {
  std::mt19937_64 generator(43);
  for (int i = 0; i < RandomCases(20); ++i) {
    SCOPED_TRACE(i);
    Scenario s = RandomScenario(&generator);
    s.config.eviction->rotation = Rotation::kQuery;
    s.model.trained_window = generator() % 2 == 0 ? 300 : 1000;
    s.config.recall = {.blocks = s.tokens / s.config.cache.block_size / 4 + 1,
                       .queries = generator() % 2 == 0 ? 1 : 8,
                       .kv_type = KvType::kF32};
    Compare(s, &generator);
    if (HasFatalFailure()) return;
  }
}

}  // namespace
}  // namespace carousel
