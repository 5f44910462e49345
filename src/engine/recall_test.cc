// SPDX-License-Identifier: Apache-2.0
// Recall through the engine. tests/golden compares its choice and its positions with a naive one.
#include <gtest/gtest.h>
#include <sys/resource.h>
#include <unistd.h>

#include <filesystem>
#include <random>

#include "carousel/error.h"
#include "carousel/single_sequence_engine.h"
#include "engine/recall_chooser.h"
#include "engine/tiny_model.h"

namespace carousel {
namespace {

constexpr std::int64_t kVocabulary = 61;

std::vector<TokenId> Tokens(std::int64_t count, std::uint64_t seed) {
  std::mt19937_64 generator(seed);
  std::vector<TokenId> tokens;
  for (std::int64_t i = 0; i < count; ++i)
    tokens.push_back(static_cast<TokenId>(generator() % kVocabulary));
  return tokens;
}

EngineConfig Config(std::int64_t recall_blocks) {
  EngineConfig config;
  config.cache = {.block_size = 8, .key_type = KvType::kF32, .value_type = KvType::kF32};
  config.eviction = EvictionConfig{.start_size = 8, .recent_size = 16, .max_cache_size = 48};
  config.recall = {.blocks = recall_blocks, .queries = 4, .every = 1, .kv_type = KvType::kF32};
  config.chunk_size = 16;
  return config;
}

std::unique_ptr<SingleSequenceEngine> Make(const EngineConfig& config,
                                           const TinyModelOptions& model = {}) {
  return SingleSequenceEngine::Create(std::make_unique<TinyModel>(model), config);
}

// The likelihoods of a prompt, then the logarithms of the likelihood of each token of an answer.
std::vector<double> Scores(SingleSequenceEngine* engine, std::int64_t prompt,
                           std::int64_t answer = 40) {
  engine->Submit({.prompt = Tokens(prompt, 7),
                  .max_new_tokens = answer,
                  .ignore_end_tokens = true,
                  .score_prompt = true});
  std::vector<double> results;
  while (engine->HasWork()) {
    const StepResult step = engine->Step();
    results.insert(results.end(), step.negative_log_likelihood.begin(),
                   step.negative_log_likelihood.end());
    if (step.sampled) results.push_back(static_cast<double>(step.sampled->logprob));
  }
  return results;
}

double LargestDifference(const std::vector<double>& left, const std::vector<double>& right) {
  EXPECT_EQ(left.size(), right.size());
  double largest = 0.0;
  for (std::size_t i = 0; i < left.size(); ++i)
    largest = std::max(largest, std::abs(left[i] - right[i]));
  return largest;
}

// With room for everything and positions kept, recall brings the whole cache back.
TEST(Recall, EqualsTheWholeCacheWhenAllIsRecalled) {
  for (const Grouping grouping : {Grouping::kLayer, Grouping::kHead}) {
    EngineConfig config = Config(1000);
    config.eviction->positions = PositionPolicy::kKeep;
    config.eviction->grouping = grouping;
    EngineConfig whole = Config(0);
    whole.eviction.reset();
    const auto engine = Make(config);
    const std::vector<double> recalled = Scores(engine.get(), 300);
    EXPECT_LT(LargestDifference(recalled, Scores(Make(whole).get(), 300)), 1e-3);
    // And that is not because nothing was evicted.
    EXPECT_GT(LargestDifference(recalled, Scores(Make([&] {
                                                   EngineConfig none = config;
                                                   none.recall = {};
                                                   return none;
                                                 }())
                                                     .get(),
                                                 300)),
              1e-2);
    const SequenceMetrics metrics = engine->metrics();
    EXPECT_EQ(metrics.recall_stored_tokens, metrics.forgotten_tokens);
    EXPECT_EQ(metrics.recalled_blocks * 8, metrics.recall_stored_tokens * 2 * 2);
  }
}

TEST(Recall, AFileGivesTheSameBitsAsMemory) {
  EngineConfig config = Config(3);
  const std::vector<double> memory = Scores(Make(config).get(), 300);
  config.recall.store_file = (std::filesystem::temp_directory_path() /
                              ("carousel_recall_test_" + std::to_string(getpid())))
                                 .string();
  EXPECT_EQ(Scores(Make(config).get(), 300), memory);
  EXPECT_FALSE(std::filesystem::exists(config.recall.store_file));
}

// A limit on the size of files stands for a full disk: the second tier drops its oldest, and
// nothing else is different.
TEST(Recall, AFullDiskIsALimitAndNoError) {
  rlimit before{};
  ASSERT_EQ(getrlimit(RLIMIT_FSIZE, &before), 0);
  EngineConfig config = Config(3);
  config.cache.block_size = 16;
  config.eviction->start_size = 16;
  config.eviction->max_cache_size = 64;
  config.recall.store_file =
      (std::filesystem::temp_directory_path() / ("carousel_full_disk_" + std::to_string(getpid())))
          .string();
  const TinyModelOptions model{.key_dim = 48, .value_dim = 48, .trained_window = 4096};
  const auto engine = Make(config, model);
  const std::vector<double> fits = Scores(engine.get(), 300);
  EXPECT_EQ(engine->metrics().recall_refused_growths, 0);
  engine->Reset();
  rlimit small = before;
  small.rlim_cur = std::size_t{3} << 20;
  ASSERT_EQ(setrlimit(RLIMIT_FSIZE, &small), 0);
  const std::vector<double> full = Scores(engine.get(), 3000);
  setrlimit(RLIMIT_FSIZE, &before);
  const SequenceMetrics metrics = engine->metrics();
  EXPECT_GT(metrics.recall_stored_tokens, 1000);
  EXPECT_LT(metrics.recall_stored_tokens, 2500);
  EXPECT_EQ(metrics.recall_stored_tokens + metrics.recall_dropped_tokens, metrics.forgotten_tokens);
  EXPECT_GE(metrics.recall_refused_growths, 1);
  EXPECT_NE(metrics.recall_limited_by.find("File too large"), std::string::npos);
  // As with a limit of as many tokens; that is where sums of sketches may come in another order.
  EngineConfig limited = config;
  limited.recall.store_file.clear();
  limited.recall.limit_tokens = metrics.recall_stored_tokens;
  EXPECT_LT(LargestDifference(Scores(Make(limited, model).get(), 3000), full), 1e-3);
  engine->Reset();
  EXPECT_EQ(Scores(engine.get(), 300), fits);
}

TEST(Recall, SmallCodesComeClose) {
  EngineConfig config = Config(1000);
  const std::vector<double> exact = Scores(Make(config, {.trained_window = 16384}).get(), 200, 1);
  config.recall.kv_type = KvType::kInt8;
  EXPECT_LT(LargestDifference(exact, Scores(Make(config, {.trained_window = 16384}).get(), 200, 1)),
            0.05);
}

TEST(Recall, ChoosesEveryNthStepOfAnAnswer) {
  EngineConfig config = Config(2);
  config.recall.every = 5;
  const auto engine = Make(config);
  engine->Submit({.prompt = Tokens(200, 3), .max_new_tokens = 60, .ignore_end_tokens = true});
  while (engine->HasWork()) engine->Step();
  EXPECT_EQ(engine->metrics().recalled_blocks, 2 * 2 * 2);
  EXPECT_GT(engine->metrics().recall_seconds, 0.0);
}

// The token after the first one comes of the first decode step.
TEST(Recall, ThePromptsChoiceHoldsForTheFirstTokensOfAnAnswer) {
  EngineConfig config = Config(2);
  constexpr std::size_t kAfterFirst = 299 + 1;
  std::vector<double> second;
  for (const std::int64_t every : {1, 2, 1000}) {
    config.recall.every = every;
    second.push_back(Scores(Make(config).get(), 300, 3).at(kAfterFirst));
  }
  EXPECT_EQ(second[1], second[2]);
  EXPECT_NE(second[0], second[1]);
}

// A prompt's queries may choose apart, and all of them at once still see the whole cache.
TEST(Recall, ChunksOfAPromptEachChoose) {
  EngineConfig config = Config(2);
  config.recall.least_gain = 0.0;
  std::vector<std::vector<double>> scores;
  for (const std::int64_t chunk : {1, 5, 16, 1000}) {
    config.recall.chunk = chunk;
    scores.push_back(Scores(Make(config).get(), 300, 1));
  }
  EXPECT_NE(scores[0], scores[1]);
  EXPECT_NE(scores[1], scores[2]);
  EXPECT_EQ(scores[2], scores[3]);  // no step reads more than 16
  EngineConfig all = Config(1000);
  all.eviction->positions = PositionPolicy::kKeep;
  all.recall.chunk = 5;
  EngineConfig whole = Config(0);
  whole.eviction.reset();
  EXPECT_LT(LargestDifference(Scores(Make(all).get(), 300, 1), Scores(Make(whole).get(), 300, 1)),
            1e-3);
}

// Policies that count queries get the mass of the same ones, however they are parted.
TEST(Recall, PartsOfAPromptShareTheirMass) {
  EngineConfig config = Config(1000);
  config.eviction->positions = PositionPolicy::kKeep;
  for (const std::string policy : {"h2o", "tova", "snapkv"}) {
    config.eviction->policy = policy;
    config.recall.chunk = 1000;
    const std::vector<double> whole = Scores(Make(config).get(), 300, 1);
    config.recall.chunk = 3;
    EXPECT_LT(LargestDifference(Scores(Make(config).get(), 300, 1), whole), 1e-3) << policy;
  }
}

TEST(Recall, DropsTheOldestAtTheLimitAndSaysSo) {
  EngineConfig config = Config(2);
  std::int64_t round = 0;
  {
    TinyModel model({});
    EngineConfig one = config;
    round = RecallStore({.lanes = Settle(model, one).recall_lanes}).bytes_per_round();
  }
  config.recall.limit_bytes = 5 * round;
  config.recall.promotion = 0.0;  // who comes back leaves a place behind
  const auto engine = Make(config);
  Scores(engine.get(), 300);
  const SequenceMetrics metrics = engine->metrics();
  EXPECT_EQ(metrics.recall_stored_tokens, 5 * 8);
  EXPECT_EQ(metrics.recall_dropped_tokens, metrics.forgotten_tokens - 5 * 8);
  EXPECT_GT(metrics.recall_bytes, 0);
  engine->Reset();
  EXPECT_EQ(engine->metrics().recall_stored_tokens, 0);
  EXPECT_EQ(engine->metrics().recalled_blocks, 0);
}

// Who goes for a block that comes back finds the place that this one leaves: nothing is dropped for
// an exchange.
TEST(Recall, AnExchangeAtTheLimitDropsNothing) {
  EngineConfig config = Config(3);
  config.eviction->policy = "h2o";
  config.recall.promotion = 1.0;
  config.recall.limit_tokens = 5 * 8;
  const auto engine = Make(config);
  Scores(engine.get(), 600);
  const SequenceMetrics metrics = engine->metrics();
  EXPECT_GT(metrics.promoted_blocks, 10);
  EXPECT_EQ(metrics.recall_stored_tokens, 5 * 8);
  EXPECT_EQ(metrics.recall_stored_tokens + metrics.recall_dropped_tokens + metrics.resident_tokens,
            metrics.logical_tokens);
}

// Blocks that come back leave the second tier: each token is resident, stored or dropped.
TEST(Recall, WhoEarnsAPlaceMovesBackIntoTheCache) {
  for (const Grouping grouping : {Grouping::kLayer, Grouping::kHead}) {
    for (const KvType type : {KvType::kF32, KvType::kInt4}) {
      EngineConfig config = Config(3);
      config.cache = {.block_size = 16, .key_type = type, .value_type = type};
      config.eviction = EvictionConfig{.start_size = 16,
                                       .recent_size = 16,
                                       .max_cache_size = 64,
                                       .policy = "h2o",
                                       .grouping = grouping};
      config.recall.kv_type.reset();
      config.recall.promotion = 1.0;
      const auto engine = Make(config);
      const std::vector<double> promoted = Scores(engine.get(), 600);
      const SequenceMetrics metrics = engine->metrics();
      EXPECT_GT(metrics.promoted_blocks, 10);
      EXPECT_EQ(metrics.forgotten_tokens, metrics.recall_stored_tokens);
      EXPECT_EQ(metrics.forgotten_tokens + metrics.resident_tokens, metrics.logical_tokens);
      EXPECT_GT(metrics.evicted_tokens, metrics.forgotten_tokens);
      config.recall.promotion = 0.0;
      const auto never = Make(config);
      EXPECT_NE(Scores(never.get(), 600), promoted);
      EXPECT_EQ(never->metrics().promoted_blocks, 0);
    }
  }
}

// Gathering attention for somebody who looks changes nothing, least of all who comes back.
TEST(Recall, NobodyEarnsAPlaceWithQueriesThatThePolicyDoesNotCount) {
  EngineConfig config = Config(3);
  config.eviction->policy = "window";
  config.recall.promotion = 1.0;
  const auto engine = Make(config);
  engine->GatherAttention(true);
  Scores(engine.get(), 300);
  EXPECT_EQ(engine->metrics().promoted_blocks, 0);
}

TEST(Recall, IsTheSameAfterAReset) {
  const auto engine = Make(Config(3));
  const std::vector<double> first = Scores(engine.get(), 300);
  engine->Reset();
  EXPECT_EQ(Scores(engine.get(), 300), first);
}

// Angles stay inside the window on a stream many times as long; at its end more blocks are stored
// than are judged by their keys, so sketches choose among them.
TEST(Recall, RunsFarPastTheTrainedWindow) {
  for (const KvType type : {KvType::kF16, KvType::kInt8, KvType::kInt4}) {
    EngineConfig config = Config(3);
    config.cache = {.block_size = 16, .key_type = type, .value_type = type};
    config.eviction = EvictionConfig{.start_size = 16, .recent_size = 16, .max_cache_size = 64};
    config.recall.kv_type.reset();
    const auto engine = Make(config, {.trained_window = 160});
    for (const double value : Scores(engine.get(), 2600)) ASSERT_TRUE(std::isfinite(value));
    EXPECT_GT(engine->metrics().recall_stored_tokens, kFewStored * 16);
    EXPECT_EQ(engine->metrics().positions, PositionPolicy::kCompact);
  }
}

TEST(Recall, LayersWithASlidingWindowRecallNothing) {
  const auto engine = Make(Config(2), {.sliding_window = {32, 0}});
  Scores(engine.get(), 300);
  EXPECT_EQ(engine->metrics().recalled_blocks, 2 * 2);  // of the other layer's two heads
}

void ExpectRefused(const EngineConfig& config, const std::string& field,
                   const TinyModelOptions& model = {}) {
  try {
    Make(config, model);
    FAIL() << "accepted " << field;
  } catch (const Error& error) {
    EXPECT_EQ(error.field(), field) << error.what();
  }
}

TEST(Recall, RefusesWhatCannotWork) {
  EngineConfig keys = Config(2);
  keys.eviction->rotation = Rotation::kKeys;
  ExpectRefused(keys, "recall_blocks");
  EngineConfig whole = Config(2);
  whole.eviction.reset();
  ExpectRefused(whole, "recall_blocks");
  ExpectRefused(Config(-1), "recall_blocks");
  // 48 resident, 16 of a chunk, 8 for a block begun, 56 recalled: 128 positions.
  EXPECT_NO_THROW(Make(Config(7), {.trained_window = 128}));
  ExpectRefused(Config(8), "max_cache_size", {.trained_window = 128});
  EngineConfig every = Config(2);
  every.recall.every = 0;
  ExpectRefused(every, "recall_every");
  EngineConfig chunk = Config(2);
  chunk.recall.chunk = 0;
  ExpectRefused(chunk, "recall_chunk");
  EngineConfig gain = Config(2);
  gain.recall.least_gain = 1.5;
  ExpectRefused(gain, "recall_gain");
  EngineConfig promotion = Config(2);
  promotion.recall.promotion = -1.0;
  ExpectRefused(promotion, "recall_promotion");
  EngineConfig queries = Config(2);
  queries.recall.queries = 0;
  ExpectRefused(queries, "recall_queries");
  EngineConfig limit = Config(2);
  limit.recall.limit_bytes = 100;
  ExpectRefused(limit, "recall_limit");
  EngineConfig tokens = Config(2);
  tokens.recall.limit_tokens = tokens.cache.block_size - 1;
  ExpectRefused(tokens, "recall_limit_tokens");
  EngineConfig type = Config(2);
  type.recall.kv_type = KvType::kInt4;
  ExpectRefused(type, "recall_kv_type");
  EngineConfig file = Config(2);
  file.recall.store_file = "/no/such/folder/file";
  ExpectRefused(file, "recall_store");
}

// What was evicted, ever, falls by nothing that comes back; and a choice whose block is gone is no
// recalled block.
TEST(Recall, CountsWhatHappenedAndWhatIsThere) {
  EngineConfig config = Config(3);
  config.eviction->policy = "h2o";
  config.recall.promotion = 1.0;
  config.recall.every = 16;
  config.recall.limit_tokens = 2 * 8;
  const auto engine = Make(config);
  engine->Submit({.prompt = Tokens(200, 7), .max_new_tokens = 200, .ignore_end_tokens = true});
  SequenceMetrics before = engine->metrics();
  while (engine->HasWork()) {
    engine->Step();
    const SequenceMetrics metrics = engine->metrics();
    EXPECT_GE(metrics.evicted_tokens, before.evicted_tokens);
    EXPECT_GE(metrics.evicted_tokens, metrics.forgotten_tokens);
    // Two layers of two KV heads.
    EXPECT_LE(metrics.recalled_blocks * 8, metrics.recall_stored_tokens * 2 * 2);
    before = metrics;
  }
  EXPECT_GT(before.promoted_blocks, 0);
}

}  // namespace
}  // namespace carousel
