// SPDX-License-Identifier: Apache-2.0
// Policies, budgets and pins at work in the cache of a tiny model.
#include "engine/eviction_planner.h"

#include <gtest/gtest.h>
#include <rapidcheck/gtest.h>

#include <map>
#include <numeric>
#include <random>
#include <set>

#include "carousel/error.h"
#include "carousel/single_sequence_engine.h"
#include "engine/layer_attention.h"
#include "engine/sequence.h"
#include "engine/shared_cache.h"
#include "engine/tiny_model.h"
#include "eviction/budget.h"
#include "eviction/registry.h"

namespace carousel {
namespace {

constexpr std::int64_t kBlock = 8;

EngineConfig SmallConfig() {
  EngineConfig config;
  config.cache = {.block_size = kBlock, .key_type = KvType::kF32, .value_type = KvType::kF32};
  config.chunk_size = 32;
  config.eviction = EvictionConfig{.start_size = 8, .recent_size = 16, .max_cache_size = 64};
  return config;
}

std::unique_ptr<SingleSequenceEngine> Make(const EngineConfig& config,
                                           const TinyModelOptions& options = {}) {
  return SingleSequenceEngine::Create(std::make_unique<TinyModel>(options), config);
}

std::vector<TokenId> Tokens(std::int64_t count, std::uint64_t seed = 1) {
  std::mt19937_64 generator(seed);
  std::vector<TokenId> tokens;
  for (std::int64_t i = 0; i < count; ++i) tokens.push_back(static_cast<TokenId>(generator() % 61));
  return tokens;
}

// Likelihoods of a prompt, then an answer's tokens and their log-likelihoods.
std::vector<double> Play(SingleSequenceEngine* engine, const std::vector<TokenId>& prompt,
                         std::int64_t answer) {
  engine->Submit({.prompt = prompt,
                  .max_new_tokens = answer,
                  .ignore_end_tokens = true,
                  .score_prompt = true});
  std::vector<double> numbers;
  while (engine->HasWork()) {
    const StepResult step = engine->Step();
    numbers.insert(numbers.end(), step.negative_log_likelihood.begin(),
                   step.negative_log_likelihood.end());
    if (step.sampled) {
      numbers.push_back(step.sampled->token);
      numbers.push_back(static_cast<double>(step.sampled->logprob));
    }
  }
  return numbers;
}

// Every policy, every budget, both groupings, KVCrush on and off.
std::vector<EvictionConfig> EveryWay(const EvictionConfig& base) {
  std::vector<EvictionConfig> ways;
  for (const PolicyEntry& entry : RegisteredPolicies()) {
    for (const Budget budget : {Budget::kUniform, Budget::kPyramid, Budget::kAdaptive}) {
      for (const Grouping grouping : {Grouping::kLayer, Grouping::kHead}) {
        for (const std::int64_t kvcrush : {0, 1}) {
          if (kvcrush > 0 && entry.name == "adaptive_rkv") continue;
          EvictionConfig way = base;
          way.policy = entry.name;
          way.budget = budget;
          way.grouping = grouping;
          way.kvcrush_budget = kvcrush;
          ways.push_back(way);
        }
      }
    }
  }
  return ways;
}

std::string Describe(const EvictionConfig& way) {
  return way.policy + " " + std::string(Name(way.budget)) + " " + std::string(Name(way.grouping)) +
         " kvcrush " + std::to_string(way.kvcrush_budget) + " " +
         std::string(Name(way.prompt_eviction));
}

// With a task per KV head the kernel adds in another order than with one per layer, so each
// grouping is held against the whole cache in its own: per head, a cache far too large for anything
// to go.
TEST(EveryPolicy, IsTheWholeCacheBitForBitWhenTheBudgetIsLargeEnough) {
  const auto prompt = Tokens(150);
  EngineConfig whole = SmallConfig();
  whole.eviction = EvictionConfig{.start_size = 8,
                                  .recent_size = 16,
                                  .max_cache_size = 1024,
                                  .policy = "window",
                                  .grouping = Grouping::kHead};
  const TinyModelOptions model{.trained_window = 4096};
  const auto by_head = Play(Make(whole, model).get(), prompt, 30);
  whole.eviction.reset();
  const auto by_layer = Play(Make(whole, model).get(), prompt, 30);
  ASSERT_EQ(by_head.size(), by_layer.size());
  for (std::size_t i = 0; i < by_head.size(); ++i) EXPECT_NEAR(by_head[i], by_layer[i], 1e-4);

  for (const PromptEviction when : {PromptEviction::kCapped, PromptEviction::kAtEnd}) {
    EngineConfig config = SmallConfig();
    config.eviction->max_cache_size = 184;
    config.eviction->prompt_eviction = when;
    config.eviction->budget_slope = 1.0;  // a steeper pyramid is not large enough for all layers
    for (const EvictionConfig& way : EveryWay(*config.eviction)) {
      config.eviction = way;
      const auto engine = Make(config, model);
      const bool heads = way.grouping == Grouping::kHead || way.budget == Budget::kAdaptive;
      EXPECT_EQ(Play(engine.get(), prompt, 30) == (heads ? by_head : by_layer), true)
          << Describe(way);
      EXPECT_EQ(engine->metrics().evicted_tokens, 0) << Describe(way);
    }
  }
}

TEST(EveryPolicy, EvictsTheSameWayTwiceAndAfterReset) {
  const auto prompt = Tokens(200);
  for (const PromptEviction when : {PromptEviction::kCapped, PromptEviction::kAtEnd}) {
    EngineConfig config = SmallConfig();
    config.eviction->prompt_eviction = when;
    config.eviction->policy_seed = 3;
    for (const EvictionConfig& way : EveryWay(*config.eviction)) {
      config.eviction = way;
      const auto engine = Make(config);
      const auto first = Play(engine.get(), prompt, 20);
      EXPECT_GT(engine->metrics().evicted_tokens, 0) << Describe(way);
      engine->Reset();
      EXPECT_EQ(Play(engine.get(), prompt, 20), first) << Describe(way);
      EXPECT_EQ(Play(Make(config).get(), prompt, 20), first) << Describe(way);
    }
  }
}

TEST(EveryPolicy, DoesNotMindThatSomebodyGathersAttention) {
  const auto prompt = Tokens(200);
  for (const PromptEviction when : {PromptEviction::kCapped, PromptEviction::kAtEnd}) {
    EngineConfig config = SmallConfig();
    config.eviction->prompt_eviction = when;
    for (const PolicyEntry& entry : RegisteredPolicies()) {
      config.eviction->policy = entry.name;
      const auto watched = Make(config);
      watched->GatherAttention(true);
      EXPECT_EQ(Play(watched.get(), prompt, 20), Play(Make(config).get(), prompt, 20))
          << Describe(*config.eviction);
    }
  }
}

TEST(EveryPolicy, PrefersWhatItSaysItDoes) {
  // The same text and budget, other survivors: no two policies are one by mistake.
  const auto prompt = Tokens(300);
  std::map<std::vector<double>, std::string> seen;
  for (const PolicyEntry& entry : RegisteredPolicies()) {
    EngineConfig config = SmallConfig();
    config.eviction->policy = entry.name;
    const auto [other, is_new] = seen.emplace(Play(Make(config).get(), prompt, 10), entry.name);
    EXPECT_TRUE(is_new) << entry.name << " does what " << other->second << " does";
  }
}

// A cache that is fed random queries, keys and values.
class FedCache {
 public:
  FedCache(const EngineConfig& config, std::uint64_t seed)
      : model_({.layers = 3, .query_heads = 6, .kv_heads = 3, .trained_window = 2048}),
        settings_(Settle(model_, config)),
        memory_(model_.spec().layers, settings_.limit_bytes),
        shared_(settings_, &memory_),
        sequence_(&shared_),
        attention_(&memory_),
        generator_(seed) {
    shared_.Reserve();
  }

  Sequence& cache() { return sequence_; }
  SharedCache& shared() { return shared_; }
  const EngineSettings& settings() const { return settings_; }
  std::int64_t Pick(std::int64_t least, std::int64_t most) {
    return least +
           static_cast<std::int64_t>(generator_() % static_cast<std::uint64_t>(most - least + 1));
  }

  void Step(std::int64_t tokens, std::int64_t prompt_left) {
    sequence_.Plan(
        {.tokens = tokens, .is_prompt = tokens > 1 || prompt_left > 0, .prompt_left = prompt_left});
    attention_.Begin(&sequence_);
    for (std::int64_t layer = 0; layer < 3; ++layer) {
      const auto q = Random(tokens * 6 * 16);
      const auto k = Random(tokens * 3 * 16);
      const auto v = Random(tokens * 3 * 16);
      std::vector<float> out(static_cast<std::size_t>(tokens * 6 * 16));
      attention_.Attend(layer, tokens, q.data(), k.data(), v.data(), out.data());
    }
    sequence_.Commit(std::vector<TokenId>(static_cast<std::size_t>(tokens)), 0);
  }

 private:
  std::vector<float> Random(std::int64_t count) {
    std::normal_distribution<float> normal;
    std::vector<float> numbers(static_cast<std::size_t>(count));
    for (float& number : numbers) number = normal(generator_);
    return numbers;
  }

  TinyModel model_;
  EngineSettings settings_;
  CacheMemory memory_;
  SharedCache shared_;
  Sequence sequence_;
  LayerAttention attention_;
  std::mt19937_64 generator_;
};

// At every step of random runs: what a layer's groups hold together is within what the layer was
// given (and one chunk while a prompt is read), nothing beyond what was reserved at the start is
// ever taken, and each block is either in use or free.
TEST(Budgets, TotalsHoldAtEveryStep) {
  EngineConfig config = SmallConfig();
  std::uint64_t seed = 1;
  for (const EvictionConfig& way : EveryWay(*config.eviction)) {
    config.eviction = way;
    config.eviction->budget_floor = static_cast<double>(seed % 5) / 4;
    FedCache fed(config, ++seed);
    const BlockPools& pools = fed.shared().pools();
    const std::int64_t reserved = pools.bytes_reserved();
    std::int64_t prompt = fed.Pick(100, 300);
    const auto sizes = LayerSizes(*config.eviction, 3, kBlock);
    for (int step = 0; step < 60; ++step) {
      const std::int64_t tokens = prompt > 0 ? std::min<std::int64_t>(prompt, fed.Pick(1, 32)) : 1;
      prompt -= std::min(prompt, tokens);
      fed.Step(tokens, prompt);
      const bool decode = prompt == 0 && tokens == 1;
      fed.cache().tables().CheckIntegrity();
      std::vector<std::int64_t> blocks(3, 0);
      std::int64_t in_use = 0;
      for (std::int64_t group = 0; group < pools.groups(); ++group) {
        const auto& heads = fed.settings().groups[static_cast<std::size_t>(group)];
        const std::int64_t count = std::ssize(fed.cache().tables().table(group).entries());
        blocks[static_cast<std::size_t>(heads.layer)] += count * heads.kv_heads;
        in_use += count * static_cast<std::int64_t>(
                              fed.settings().shapes[static_cast<std::size_t>(group)].bytes());
        EXPECT_EQ(pools.of(group).blocks_in_use() + pools.of(group).blocks_free(),
                  pools.of(group).blocks_reserved());
      }
      EXPECT_EQ(in_use, pools.bytes_in_use());
      EXPECT_EQ(pools.bytes_reserved(), reserved) << Describe(way);
      for (std::size_t layer = 0; layer < 3; ++layer) {
        const std::int64_t chunk = decode ? 0 : 3 * (32 / kBlock + 1);
        EXPECT_LE(blocks[layer], 3 * sizes[layer] / kBlock + chunk) << Describe(way);
      }
    }
    // As full as it may be: a budget is used, not only kept.
    std::int64_t held = 0;
    for (std::int64_t group = 0; group < pools.groups(); ++group)
      held += std::ssize(fed.cache().tables().table(group).entries()) *
              fed.settings().groups[static_cast<std::size_t>(group)].kv_heads;
    EXPECT_EQ(held, 3 * 3 * 64 / kBlock) << Describe(way);
  }
}

TEST(Budgets, AdaptiveHeadsReallyDiffer) {
  EngineConfig config = SmallConfig();
  config.eviction->budget = Budget::kAdaptive;
  config.eviction->policy = "random";
  FedCache fed(config, 1);
  for (std::int64_t left = 480; left >= 0; left -= 32) fed.Step(32, left);
  fed.Step(1, 0);
  std::set<std::int64_t> sizes;
  for (std::int64_t group = 0; group < 9; ++group)
    sizes.insert(fed.cache().tables().table(group).resident_tokens());
  EXPECT_GT(sizes.size(), 2U);
}

// The definition, head by head and block by block, of who goes.
RC_GTEST_PROP(AdaptiveLosses, EqualTheRule, (std::uint64_t seed)) {
  std::mt19937_64 generator(seed);
  std::vector<HeadCandidates> heads(1 + generator() % 4);
  std::int64_t all = 0;
  for (HeadCandidates& head : heads) {
    const std::uint64_t count = generator() % 9;
    for (std::uint64_t i = 0; i < count; ++i) {
      head.scores.push_back(static_cast<double>(generator() % 6));
      head.logical.push_back(static_cast<std::int64_t>(8 * (i + generator() % 2)));
    }
    all += static_cast<std::int64_t>(count);
  }
  const auto losses = static_cast<std::int64_t>(generator() % static_cast<std::uint64_t>(all + 3));
  const double floor = static_cast<double>(generator() % 5) / 4;
  const auto lost = AdaptiveLosses(heads, losses, floor);
  std::int64_t total = 0;
  const auto kept_each = static_cast<std::int64_t>(
      floor * static_cast<double>(std::max<std::int64_t>(0, all - losses)) /
      static_cast<double>(heads.size()));
  for (std::size_t h = 0; h < heads.size(); ++h) {
    total += lost[h];
    RC_ASSERT(lost[h] >= 0 && lost[h] <= std::ssize(heads[h].scores));
    RC_ASSERT(lost[h] == 0 || std::ssize(heads[h].scores) - lost[h] >= kept_each);
  }
  std::int64_t may_go = 0;
  for (const HeadCandidates& head : heads)
    may_go += std::max<std::int64_t>(0, std::ssize(head.scores) - kept_each);
  RC_ASSERT(total == std::min(losses, may_go));
  // Nobody goes for a higher score while a lower one of a head above its floor stays.
  std::vector<std::vector<double>> sorted;
  for (const HeadCandidates& head : heads) {
    sorted.push_back(head.scores);
    std::sort(sorted.back().begin(), sorted.back().end());
  }
  for (std::size_t a = 0; a < heads.size(); ++a) {
    for (std::size_t b = 0; b < heads.size(); ++b) {
      if (lost[a] == 0 || std::ssize(heads[b].scores) - lost[b] <= kept_each) continue;
      RC_ASSERT(sorted[a][static_cast<std::size_t>(lost[a] - 1)] <=
                sorted[b][static_cast<std::size_t>(lost[b])]);
    }
  }
}

TEST(LayerSizes, PyramidFallsAndAddsUp) {
  const EvictionConfig eviction{.start_size = 32,
                                .recent_size = 128,
                                .max_cache_size = 512,
                                .budget = Budget::kPyramid,
                                .budget_slope = 20.0};
  const auto sizes = LayerSizes(eviction, 30, 32);
  EXPECT_EQ(std::accumulate(sizes.begin(), sizes.end(), std::int64_t{0}), 30 * 512);
  EXPECT_EQ(sizes.back(), 32 + 128 + 32);        // 11 / 20 of a block, so one
  EXPECT_EQ(sizes.front(), 32 + 128 + 21 * 32);  // twice the mean less that
  for (std::size_t i = 1; i < sizes.size(); ++i) EXPECT_LE(sizes[i], sizes[i - 1] + 32);
}

TEST(Budgets, ASplitPastTheTrainedWindowIsRefused) {
  EngineConfig config = SmallConfig();
  config.eviction->max_cache_size = 256;
  for (const Budget budget : {Budget::kPyramid, Budget::kAdaptive}) {
    config.eviction->budget = budget;
    try {
      Make(config, {.trained_window = 320});
      FAIL() << Name(budget);
    } catch (const Error& error) {
      EXPECT_EQ(error.field(), "max_cache_size");
      EXPECT_NE(error.problem().find(std::string(Name(budget))), std::string::npos)
          << error.problem();
    }
  }
}

// --- pins ---

std::set<std::int64_t> Kept(const SequenceTables& tables, std::int64_t group) {
  std::set<std::int64_t> blocks;
  for (const TableEntry& entry : tables.table(group).entries())
    blocks.insert(entry.logical.value / kBlock);
  return blocks;
}

TEST(Pins, PinnedBlocksOutliveEverything) {
  EngineConfig config = SmallConfig();
  std::uint64_t seed = 10;
  for (const EvictionConfig& way : EveryWay(*config.eviction)) {
    if (way.budget == Budget::kPyramid) continue;  // its last layer has no room
    config.eviction = way;
    FedCache fed(config, ++seed);
    // Tokens 43 to 49 and 100: blocks 5, 6 and 12.
    const std::vector<TokenSpan> spans = {{43, 50}, {100, 101}};
    fed.cache().eviction().Pin(spans);
    for (std::int64_t left = 480; left >= 0; left -= 32) fed.Step(32, left);
    for (int i = 0; i < 20; ++i) fed.Step(1, 0);
    for (std::int64_t group = 0; group < fed.cache().tables().groups(); ++group) {
      const auto kept = Kept(fed.cache().tables(), group);
      for (const std::int64_t block : {0, 5, 6, 12})
        EXPECT_TRUE(kept.contains(block)) << Describe(way) << " " << block;
      if (way.budget == Budget::kUniform) {
        EXPECT_EQ(kept.size(), 64U / kBlock);
      }
    }
  }
}

TEST(Pins, TooMuchIsRefusedAndNothingChanges) {
  const auto engine = Make(SmallConfig());
  Play(engine.get(), Tokens(40), 3);
  // 64 - 8 - 16 leaves five blocks, one of them must stay free: four may be pinned.
  const auto submit = [&](std::int64_t begin, std::int64_t end) {
    engine->Submit({.prompt = Tokens(100), .pinned = {{begin, end}}});
  };
  for (int i = 0; i < 2; ++i) {
    try {
      submit(10, 60);
      FAIL();
    } catch (const Error& error) {
      EXPECT_EQ(error.field(), "pinned");
      EXPECT_NE(error.problem().find("32"), std::string::npos) << error.problem();
      EXPECT_FALSE(engine->HasWork());
      EXPECT_EQ(engine->metrics().logical_tokens, 42);
    }
  }
  for (const auto& [begin, end] : {std::pair{-1, 5}, {5, 5}, {6, 5}, {90, 101}}) {
    try {
      submit(begin, end);
      FAIL();
    } catch (const Error& error) {
      EXPECT_EQ(error.field(), "pinned");
    }
  }
  submit(10, 20);  // and what fits is taken
  while (engine->HasWork()) engine->Step();
  EXPECT_EQ(engine->metrics().logical_tokens, 143);
}

TEST(Pins, TheUnreadTokenMovesThemOn) {
  // The answer's last token goes in front of the next prompt: pinning its first token means the
  // stream's token 43, in block 5, and not token 42.
  EngineConfig config = SmallConfig();
  config.eviction->policy = "window";
  const auto pinned_next = [&](std::int64_t begin) {
    const auto engine = Make(config);
    Play(engine.get(), Tokens(37), 3);  // 39 read, one unread: the prompt begins at token 40
    engine->Submit(
        {.prompt = Tokens(300, 2), .pinned = {{begin, begin + 1}}, .score_prompt = true});
    std::vector<double> scores;
    while (engine->HasWork()) {
      const StepResult step = engine->Step();
      scores.insert(scores.end(), step.negative_log_likelihood.begin(),
                    step.negative_log_likelihood.end());
    }
    return scores;
  };
  EXPECT_EQ(pinned_next(0), pinned_next(7));  // 40 to 47 are one block
  EXPECT_NE(pinned_next(7), pinned_next(8));
}

TEST(Pins, ResetUnpinsAndCancelLetsGoOfWhatNeverCame) {
  const auto engine = Make(SmallConfig());
  const auto expected = Play(Make(SmallConfig()).get(), Tokens(300), 20);
  engine->Submit({.prompt = Tokens(200), .pinned = {{8, 40}}});
  engine->Step();
  engine->Reset();
  EXPECT_EQ(Play(engine.get(), Tokens(300), 20), expected);

  engine->Reset();
  engine->Submit({.prompt = Tokens(200), .pinned = {{96, 128}}});
  engine->Step();  // 32 tokens are read
  engine->Cancel();
  while (engine->HasWork()) engine->Step();
  engine->Submit({.prompt = Tokens(100), .pinned = {{0, 32}}});  // four blocks again
  EXPECT_TRUE(engine->HasWork());
}

TEST(Pins, WithoutEvictionTheyAreFree) {
  EngineConfig config = SmallConfig();
  config.eviction.reset();
  const auto engine = Make(config);
  engine->Submit({.prompt = Tokens(200), .pinned = {{0, 200}}});
  EXPECT_TRUE(engine->HasWork());
}

}  // namespace
}  // namespace carousel
