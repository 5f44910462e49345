// SPDX-License-Identifier: Apache-2.0
// The engine against a naive one, over random models and settings: same text in, same likelihoods
// out.
#include <fmt/format.h>
#include <gtest/gtest.h>

#include <initializer_list>
#include <memory>
#include <random>
#include <string>
#include <vector>

#include "carousel/single_sequence_engine.h"
#include "engine/recall_chooser.h"
#include "engine/tiny_model.h"
#include "eviction/registry.h"
#include "golden/naive_judge.h"
#include "testing/random_cases.h"

namespace carousel {
namespace {

struct Scenario {
  TinyModelOptions model;
  EngineConfig config;
  std::int64_t tokens = 400;
  TokenSpan pinned;         // of the prompt; empty: none
  double tolerance = 5e-3;  // of a likelihood
  std::int64_t turns = 1;
  std::int64_t answer_tokens = 0;

  std::string Name() const {
    const EvictionConfig& way = *config.eviction;
    return fmt::format("{} {} {} {} {} {} {} kvcrush {}{}{}", way.policy,
                       carousel::Name(way.budget), carousel::Name(way.grouping),
                       carousel::Name(way.rotation), carousel::Name(way.positions),
                       carousel::Name(way.prompt_eviction), carousel::Name(config.cache.key_type),
                       way.kvcrush_budget, pinned.end > 0 ? " pinned" : "",
                       model.sliding_window.empty() ? "" : " window");
  }
};

// In the first layer equal tokens have keys of the same norm, and rounding decides between them at
// the median of KVCrush's patterns: so no key may be rewritten there, and no written position begin
// anew.
bool RoundingDecides(const EvictionConfig& eviction) {
  return eviction.policy == "keynorm" && eviction.kvcrush_budget > 0;
}

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
  constexpr Budget kBudgets[] = {Budget::kUniform, Budget::kPyramid, Budget::kAdaptive};
  s.config.eviction = EvictionConfig{
      .start_size = 8,
      .recent_size = pick({8, 24}),
      .max_cache_size = pick({48, 64, 88}),
      .policy = RegisteredPolicies()[(*generator)() % RegisteredPolicies().size()].name,
      .policy_seed = (*generator)(),
      .aggregation = pick({0, 1}) == 0 ? Aggregation::kSum : Aggregation::kNormSum,
      .snapkv_window = pick({0, 1, 8}),
      .pooling_width = pick({1, 7}),
      .kvcrush_budget = pick({0, 0, 1}),
      .budget = kBudgets[pick({0, 1, 2})],
      .budget_floor = pick({0, 1}) == 0 ? 0.2 : 0.7,
      .budget_slope = 3.0,
      .rotation = pick({0, 1}) == 0 ? Rotation::kQuery : Rotation::kKeys,
      .positions = kPolicies[pick({0, 1, 2})],
      .grouping = pick({0, 1}) == 0 ? Grouping::kLayer : Grouping::kHead};
  EvictionConfig& eviction = *s.config.eviction;
  if (eviction.policy == "adaptive_rkv") eviction.kvcrush_budget = 0;
  // One head may come to hold the room of all, and the first layer twice its even share.
  if (eviction.budget != Budget::kUniform) s.model.trained_window = pick({300, 1000});
  if (eviction.max_cache_size == 88 && eviction.budget != Budget::kPyramid && pick({0, 1}) == 1)
    s.pinned = {.begin = 37, .end = 45};
  if (RoundingDecides(eviction)) {
    eviction.rotation = Rotation::kQuery;
    s.model.trained_window = 1000;
  }
  // What rounds keys and values would move the scores of most policies, and with a near tie the
  // choice; these two look at neither.
  if (eviction.policy == "window" || eviction.policy == "random") {
    constexpr KvType kTypes[] = {KvType::kF32, KvType::kF16, KvType::kBf16, KvType::kInt8};
    s.config.cache.key_type = s.config.cache.value_type = kTypes[pick({0, 1, 2, 3})];
    if (s.config.cache.key_type != KvType::kF32) s.tolerance = 0.15;
  }
  return s;
}

// What comparisons have seen in all.
struct Seen {
  std::int64_t tokens = 0;  // of the streams
  std::int64_t judged_tokens = 0;
  std::int64_t promoted_blocks = 0;
  testing::NaiveRecallCounts recall;

  void Add(const Seen& other) {
    tokens += other.tokens;
    judged_tokens += other.judged_tokens;
    promoted_blocks += other.promoted_blocks;
    recall.little_gains_in_prompts += other.recall.little_gains_in_prompts;
    recall.large_gains_in_prompts += other.recall.large_gains_in_prompts;
    recall.little_gains_in_answers += other.recall.little_gains_in_answers;
    recall.large_gains_in_answers += other.recall.large_gains_in_answers;
    recall.sketched += other.recall.sketched;
    recall.overlooked += other.recall.overlooked;
    recall.undecided += other.recall.undecided;
  }
};

Seen Compare(const Scenario& s, std::mt19937_64* generator) {
  std::vector<TokenId> tokens;
  for (std::int64_t i = 0; i < s.tokens; ++i)
    tokens.push_back(static_cast<TokenId>((*generator)() % 61));
  const auto engine = SingleSequenceEngine::Create(std::make_unique<TinyModel>(s.model), s.config);
  TinyModel naive_model(s.model);
  const LayerRope layer{.pairing = s.model.pairing,
                        .rotated_dims = s.model.key_dim,
                        .frequencies = PlainFrequencies(s.model.rope_theta, s.model.key_dim)};
  const RopeSpec rope{std::vector<LayerRope>(static_cast<std::size_t>(s.model.layers), layer)};
  const testing::NaiveReport report =
      testing::ExpectSameLikelihoods(*engine, {.model = &naive_model,
                                               .rope = &rope,
                                               .config = &s.config,
                                               .tokens = tokens,
                                               .pinned = s.pinned,
                                               .tolerance = s.tolerance,
                                               .turns = s.turns,
                                               .answer_tokens = s.answer_tokens});
  return {.tokens = s.tokens + s.turns * s.answer_tokens,
          .judged_tokens = report.judged_tokens,
          .promoted_blocks = engine->metrics().promoted_blocks,
          .recall = report.recall};
}

// Under sanitizers so few of the cases are run that they may not show all that is looked for.
bool AllRun(int cases) { return RandomCases(cases) == cases; }

// Compares scenarios that `make` makes of their number and a generator; stops at the first
// difference.
template <typename Make>
Seen CompareMany(std::uint64_t seed, int cases, Make make) {
  std::mt19937_64 generator(seed);
  Seen seen;
  for (int i = 0; i < RandomCases(cases); ++i) {
    const Scenario s = make(i, &generator);
    SCOPED_TRACE(std::to_string(i) + ": " + s.Name());
    seen.Add(Compare(s, &generator));
    if (::testing::Test::HasFatalFailure()) return seen;
  }
  // Rounding alone seldom decides.
  if (AllRun(cases)) {
    EXPECT_GT(static_cast<double>(seen.judged_tokens), 0.9 * static_cast<double>(seen.tokens));
  }
  return seen;
}

// Several turns, each with an answer that the engine decodes and reads back.
Scenario InTurns(Scenario s) {
  s.tokens = 240;
  s.turns = 3;
  s.answer_tokens = 40;
  return s;
}

TEST(NaiveEngine, SameLikelihoodsOverRandomScenarios) {
  CompareMany(42, 120, [](int, auto* generator) { return RandomScenario(generator); });
}

TEST(NaiveEngine, SameLikelihoodsInConversations) {
  CompareMany(45, 40, [](int, auto* generator) { return InTurns(RandomScenario(generator)); });
}

// So few blocks are stored that each is weighed by its keys. A quarter of them is recalled.
Scenario RandomRecallScenario(std::mt19937_64* generator) {
  Scenario s = RandomScenario(generator);
  s.config.eviction->budget = Budget::kUniform;  // what is recalled takes positions as well
  // Rounded keys would move what each candidate weighs, and with a near tie the choice.
  s.config.cache.key_type = s.config.cache.value_type = KvType::kF32;
  s.tolerance = 5e-3;
  s.config.eviction->rotation = Rotation::kQuery;
  const bool begins_anew = (*generator)() % 2 == 0;
  s.model.trained_window = begins_anew && !RoundingDecides(*s.config.eviction) ? 300 : 1000;
  const std::int64_t stored = s.tokens / s.config.cache.block_size;
  EXPECT_LE(stored, kFewStored);
  s.config.recall = {.blocks = stored / 4 + 1,
                     .chunk = 1 + static_cast<std::int64_t>((*generator)() % 24),
                     .queries = (*generator)() % 2 == 0 ? 1 : 8,
                     .least_gain = 0.0,
                     .promotion = static_cast<double>((*generator)() % 3),
                     .kv_type = KvType::kF32};
  return s;
}

TEST(NaiveEngine, SameLikelihoodsWithRecall) {
  CompareMany(43, 20, [](int, auto* generator) { return RandomRecallScenario(generator); });
}

TEST(NaiveEngine, SameLikelihoodsHoweverFewAreRecalled) {
  const Seen seen = CompareMany(44, 20, [](int, auto* generator) {
    Scenario s = RandomRecallScenario(generator);
    s.config.recall.blocks = 1 + static_cast<std::int64_t>((*generator)() % 16);
    return s;
  });
  if (HasFatalFailure()) return;
  EXPECT_GT(seen.promoted_blocks, 100);  // or the comparison says nothing about them
}

// All that is forgotten comes back, or a few blocks; each token of an answer chooses for itself.
TEST(NaiveEngine, SameLikelihoodsInConversationsWithRecall) {
  const Seen seen = CompareMany(46, 20, [](int i, auto* generator) {
    Scenario s = InTurns(RandomRecallScenario(generator));
    s.config.recall.every = 1;
    if (i % 2 == 0) {
      s.model.trained_window = 1000;
      s.config.recall.blocks = (s.tokens + s.turns * s.answer_tokens) / s.config.cache.block_size;
    }
    return s;
  });
  if (HasFatalFailure() || !AllRun(20)) return;
  EXPECT_GT(seen.promoted_blocks, 20);
}

// Heads that gain little choose for more tokens at once, of prompts and of answers.
TEST(NaiveEngine, SameLikelihoodsHoweverSeldomHeadsChoose) {
  const Seen seen = CompareMany(4000, 20, [](int i, auto* generator) {
    const auto pick = [&](auto... from) {
      const double all[] = {static_cast<double>(from)...};
      return all[(*generator)() % sizeof...(from)];
    };
    Scenario s = RandomRecallScenario(generator);
    if (i % 2 == 0) s = InTurns(s);
    s.config.recall.blocks = 1 + static_cast<std::int64_t>((*generator)() % 16);
    s.config.recall.chunk = 1 + static_cast<std::int64_t>((*generator)() % 8);
    s.config.recall.every = static_cast<std::int64_t>(pick(1, 2, 3, 16));
    s.config.recall.least_gain = pick(0.01, 0.02, 0.05);
    return s;
  });
  if (HasFatalFailure() || !AllRun(20)) return;
  EXPECT_GT(seen.recall.little_gains_in_prompts, 200);
  EXPECT_GT(seen.recall.large_gains_in_prompts, 200);
  EXPECT_GT(seen.recall.little_gains_in_answers, 200);
  EXPECT_GT(seen.recall.large_gains_in_answers, 200);
}

// Of many stored blocks sketches name those that are weighed by their keys. So many are recalled
// that it matters which are named.
TEST(NaiveEngine, SameLikelihoodsWhereSketchesNameCandidates) {
  const Seen seen = CompareMany(5, 2, [](int i, auto* generator) {
    Scenario s = RandomRecallScenario(generator);
    s.tokens = 1500;
    s.turns = 2;
    s.answer_tokens = 60;
    if (i % 2 == 0) {
      s.config.eviction->positions = PositionPolicy::kCompact;
    } else {
      s.config.eviction->positions = PositionPolicy::kKeep;
      s.model.trained_window = 2000;
      s.model.alibi = false;  // or what is old would all be too far off to be told apart
    }
    s.config.recall.blocks = 8;
    s.config.recall.chunk = 16;
    s.config.recall.every = 1 + static_cast<std::int64_t>((*generator)() % 4);
    s.config.recall.least_gain = 0.01;
    return s;
  });
  if (HasFatalFailure() || !AllRun(2)) return;
  EXPECT_GT(seen.recall.sketched, 200);
  EXPECT_GT(seen.recall.overlooked, 100);
}

}  // namespace
}  // namespace carousel
