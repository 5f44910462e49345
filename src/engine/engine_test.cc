// SPDX-License-Identifier: Apache-2.0
// Requests, steps and limits on the tiny model.
#include "carousel/single_sequence_engine.h"

#include <gtest/gtest.h>

#include <algorithm>
#include <cmath>
#include <set>
#include <span>
#include <string>
#include <thread>

#include "carousel/error.h"
#include "engine/logits.h"
#include "engine/tiny_model.h"

namespace carousel {
namespace {

EngineConfig SmallConfig() {
  EngineConfig config;
  config.cache = {.block_size = 8, .key_type = KvType::kF32, .value_type = KvType::kF32};
  config.chunk_size = 32;
  config.eviction = EvictionConfig{.start_size = 8, .recent_size = 16, .max_cache_size = 64};
  return config;
}

EngineConfig WholeCache() {
  EngineConfig config = SmallConfig();
  config.eviction.reset();
  return config;
}

std::unique_ptr<SingleSequenceEngine> Make(const EngineConfig& config,
                                           const TinyModelOptions& options = {}) {
  return SingleSequenceEngine::Create(std::make_unique<TinyModel>(options), config);
}

std::vector<TokenId> Tokens(std::int64_t count, std::uint64_t seed = 1) {
  std::vector<TokenId> tokens;
  for (std::int64_t i = 0; i < count; ++i) {
    seed = seed * 6364136223846793005U + 1442695040888963407U;
    tokens.push_back(static_cast<TokenId>((seed >> 33) % 61));
  }
  return tokens;
}

std::vector<TokenId> RunRequest(SingleSequenceEngine* engine, Request request,
                                FinishReason* reason = nullptr) {
  engine->Submit(std::move(request));
  std::vector<TokenId> answer;
  while (engine->HasWork()) {
    const StepResult step = engine->Step();
    if (step.sampled) answer.push_back(step.sampled->token);
    if (reason != nullptr && step.finish_reason != FinishReason::kNone)
      *reason = step.finish_reason;
  }
  return answer;
}

std::vector<double> ScoreAll(SingleSequenceEngine* engine, const std::vector<TokenId>& tokens) {
  engine->Submit({.prompt = tokens, .score_prompt = true});
  std::vector<double> scores;
  while (engine->HasWork()) {
    const StepResult step = engine->Step();
    scores.insert(scores.end(), step.negative_log_likelihood.begin(),
                  step.negative_log_likelihood.end());
  }
  return scores;
}

TEST(Engine, ChunksDoNotChangeTheText) {
  std::vector<std::vector<TokenId>> answers;
  for (const std::int64_t chunk : {8, 13, 32, 1000}) {
    EngineConfig config = WholeCache();
    config.chunk_size = chunk;
    const auto engine = Make(config);
    answers.push_back(RunRequest(engine.get(), {.prompt = Tokens(100), .max_new_tokens = 40}));
    EXPECT_EQ(answers.back().size(), 40U);
    EXPECT_EQ(answers.back(), answers.front());
    EXPECT_EQ(engine->metrics().logical_tokens, 139);  // the last token was not read
  }
}

TEST(Engine, ScoresAreTheSameInOnePieceOrMany) {
  const auto tokens = Tokens(150);
  const auto whole = ScoreAll(Make(WholeCache()).get(), tokens);
  EXPECT_EQ(whole.size(), 149U);
  const auto engine = Make(WholeCache());
  std::vector<double> pieces;
  for (std::size_t begin = 0; begin < tokens.size(); begin += 37) {
    const auto end = std::min(tokens.size(), begin + 37);
    const auto part = ScoreAll(engine.get(), {tokens.begin() + static_cast<std::ptrdiff_t>(begin),
                                              tokens.begin() + static_cast<std::ptrdiff_t>(end)});
    pieces.insert(pieces.end(), part.begin(), part.end());
  }
  ASSERT_EQ(pieces.size(), whole.size());
  for (std::size_t i = 0; i < whole.size(); ++i) EXPECT_NEAR(pieces[i], whole[i], 1e-4) << i;
}

TEST(Engine, AForcedAnswerIsReadLikeOneOfTheModelsOwn) {
  const Request open{.prompt = Tokens(50), .max_new_tokens = 6, .ignore_end_tokens = true};
  const auto engine = Make(WholeCache());
  const auto answer = RunRequest(engine.get(), open);
  const auto after = RunRequest(engine.get(), {.prompt = Tokens(5, 2), .max_new_tokens = 6});

  const auto forced = Make(WholeCache());
  forced->Submit({.prompt = Tokens(50), .forced_answer = answer, .keep_logits = true});
  for (const TokenId token : answer) {
    StepResult step;
    while (!step.sampled) step = forced->Step();
    EXPECT_EQ(step.sampled->token, token);
    ASSERT_EQ(step.logits.size(), 61U);
    EXPECT_EQ(ArgMax(step.logits), token);
    EXPECT_NEAR(
        step.sampled->logprob,
        static_cast<double>(step.logits[static_cast<std::size_t>(token)]) - LogSumExp(step.logits),
        1e-6);
  }
  EXPECT_FALSE(forced->HasWork());
  EXPECT_EQ(RunRequest(forced.get(), {.prompt = Tokens(5, 2), .max_new_tokens = 6}), after);
}

TEST(Engine, OnlyTheLastForcedTokenEndsATurn) {
  const auto engine = Make(WholeCache(), {.end_tokens = {7}});
  FinishReason reason = FinishReason::kNone;
  EXPECT_EQ(RunRequest(engine.get(), {.prompt = Tokens(9), .forced_answer = {3, 7, 4}}, &reason),
            (std::vector<TokenId>{3, 7, 4}));
  EXPECT_EQ(reason, FinishReason::kLength);
  RunRequest(engine.get(), {.prompt = {5}, .forced_answer = {3, 7}}, &reason);
  EXPECT_EQ(reason, FinishReason::kStop);
  EXPECT_THROW(engine->Submit({.prompt = {5}, .forced_answer = {61}}), Error);
}

TEST(Engine, ALargeEnoughCacheIsTheWholeCache) {
  EngineConfig config = SmallConfig();
  config.eviction->max_cache_size = 256;
  const auto tokens = Tokens(200);
  EXPECT_EQ(ScoreAll(Make(config).get(), tokens), ScoreAll(Make(WholeCache()).get(), tokens));
}

TEST(Engine, ResidentTokensStayUnderTheLimit) {
  for (const Rotation rotation : {Rotation::kQuery, Rotation::kKeys, Rotation::kOff}) {
    EngineConfig config = SmallConfig();
    config.eviction->rotation = rotation;
    const auto engine = Make(config);
    engine->Submit({.prompt = Tokens(1000), .max_new_tokens = 700, .ignore_end_tokens = true});
    const std::int64_t reserved = engine->metrics().reserved_bytes;
    while (engine->HasWork()) {
      const StepResult step = engine->Step();
      const SequenceMetrics metrics = engine->metrics();
      EXPECT_LE(metrics.resident_tokens, 64 + 32);
      if (step.tokens_processed == 1) {
        EXPECT_LE(metrics.resident_tokens, 64);
      }
      EXPECT_EQ(metrics.resident_tokens + metrics.forgotten_tokens, metrics.logical_tokens);
    }
    EXPECT_EQ(engine->metrics().logical_tokens, 1699);
    EXPECT_EQ(engine->metrics().reserved_bytes, reserved);  // all of it was taken at the start
  }
}

TEST(Engine, QueryAndKeyRotationAgree) {
  EngineConfig config = SmallConfig();
  config.eviction->positions = PositionPolicy::kCompact;
  config.eviction->rotation = Rotation::kQuery;
  const auto query = ScoreAll(Make(config).get(), Tokens(900));
  config.eviction->rotation = Rotation::kKeys;
  const auto keys = ScoreAll(Make(config).get(), Tokens(900));
  ASSERT_EQ(query.size(), keys.size());
  for (std::size_t i = 0; i < query.size(); ++i) EXPECT_NEAR(query[i], keys[i], 2e-3) << i;
}

// Query rotation never rounds a key again; key rotation by about what the type can tell apart.
void ExpectRoundingOf(const EngineConfig& config, double error) {
  if (config.eviction->rotation != Rotation::kKeys || config.cache.key_type == KvType::kF32) {
    EXPECT_EQ(error, 0.0);
    return;
  }
  const double expected = config.cache.key_type == KvType::kF16    ? 2e-4
                          : config.cache.key_type == KvType::kBf16 ? 1.6e-3
                          : config.cache.key_type == KvType::kInt8 ? 6e-3
                                                                   : 0.08;
  EXPECT_GT(error, expected / 3.0);
  EXPECT_LT(error, expected * 3.0);
}

// Every type of cache beside the same cache in floats, read in pieces that fill whole blocks and in
// pieces that leave blocks open. What goes does not depend on scores, which may nearly tie: only
// the types differ.
TEST(Engine, CompressedCachesStayCloseToFloats) {
  const auto tokens = Tokens(300);
  EngineConfig config = SmallConfig();
  config.cache.block_size = 16;
  config.eviction = EvictionConfig{.start_size = 16,
                                   .recent_size = 32,
                                   .max_cache_size = 96,
                                   .policy = "window",
                                   .positions = PositionPolicy::kCompact};
  const auto score_pieces = [&](std::size_t piece) {
    const auto engine = Make(config);
    std::vector<double> scores;
    for (std::size_t begin = 0; begin < tokens.size(); begin += piece) {
      const auto part = std::span(tokens).subspan(begin, std::min(piece, tokens.size() - begin));
      const auto more = ScoreAll(engine.get(), {part.begin(), part.end()});
      scores.insert(scores.end(), more.begin(), more.end());
    }
    EXPECT_GT(engine->metrics().evicted_tokens, 150);
    ExpectRoundingOf(config, engine->metrics().requantisation_error);
    return scores;
  };
  const auto mean_difference = [](std::span<const double> a, std::span<const double> b) {
    double sum = 0.0;
    for (std::size_t i = 0; i < a.size(); ++i) sum += std::abs(a[i] - b[i]);
    return sum / static_cast<double>(a.size());
  };
  for (const Rotation rotation : {Rotation::kQuery, Rotation::kKeys}) {
    for (const std::size_t piece : {16U, 23U}) {
      config.eviction->rotation = rotation;
      config.cache.key_type = config.cache.value_type = KvType::kF32;
      const auto exact = score_pieces(piece);
      constexpr std::size_t kBeforeEviction = 85;
      for (const KvType type : {KvType::kF16, KvType::kBf16, KvType::kInt8, KvType::kInt4}) {
        SCOPED_TRACE(std::string(Name(type)) + " " + std::string(Name(rotation)) + " pieces of " +
                     std::to_string(piece));
        config.cache.key_type = config.cache.value_type = type;
        const auto scores = score_pieces(piece);
        ASSERT_EQ(scores.size(), exact.size());
        const auto before = mean_difference(std::span(scores).first(kBeforeEviction),
                                            std::span(exact).first(kBeforeEviction));
        const auto after = mean_difference(std::span(scores).subspan(kBeforeEviction),
                                           std::span(exact).subspan(kBeforeEviction));
        EXPECT_LT(before, type == KvType::kInt4 ? 0.2 : 0.02);
        EXPECT_GT(before, 0.0);
        EXPECT_LT(after, type == KvType::kInt4 ? 0.25 : 0.03);
      }
    }
  }
}

TEST(Engine, AtEndKeepsThePromptWholeAndThenEvictsOnce) {
  EngineConfig config = SmallConfig();
  config.eviction->prompt_eviction = PromptEviction::kAtEnd;
  const auto engine = Make(config);
  engine->Submit({.prompt = Tokens(300), .max_new_tokens = 50, .ignore_end_tokens = true});
  std::int64_t most = 0;
  while (engine->HasWork()) {
    const StepResult step = engine->Step();
    if (step.tokens_processed > 1) {
      EXPECT_EQ(step.evicted_tokens, 0);
    }
    most = std::max(most, engine->metrics().resident_tokens);
  }
  EXPECT_EQ(most, 300);
  EXPECT_LE(engine->metrics().resident_tokens, 64);
}

TEST(Engine, LayersMayHoldDifferentNumbersOfBlocks) {
  EngineConfig config = SmallConfig();
  config.eviction->layer_max_cache_size = {48, 96};
  const auto engine = Make(config);
  const auto scores = ScoreAll(engine.get(), Tokens(500));
  EXPECT_LE(engine->metrics().resident_tokens, 96 + 32);
  EXPECT_GT(engine->metrics().resident_tokens, 64);
  EXPECT_GE(engine->metrics().evicted_tokens, 500 - 48 - 32);
  for (const double score : scores) EXPECT_TRUE(std::isfinite(score));
}

TEST(Engine, SlidingWindowLayersLoseNothingByLettingGo) {
  TinyModelOptions options{.sliding_window = {24, 0}};
  EngineConfig config = WholeCache();
  const auto engine = Make(config, options);
  const auto tokens = Tokens(200);
  const auto scores = ScoreAll(engine.get(), tokens);
  // Fewer blocks than two whole layers would hold, the same numbers as one chunk that holds
  // everything.
  EXPECT_LT(engine->metrics().cache_bytes, 2 * 200 * engine->metrics().cache_bytes_per_token / 2);
  config.chunk_size = 1024;
  const auto whole = ScoreAll(Make(config, options).get(), tokens);
  for (std::size_t i = 0; i < whole.size(); ++i) EXPECT_NEAR(scores[i], whole[i], 1e-4);
}

TEST(Engine, OnlyLayersWithoutAWindowAreEvicted) {
  // Longer than what the other layer may keep: all of it stays. A block stands half inside.
  TinyModelOptions options{.sliding_window = {100, 0}};
  const auto engine = Make(SmallConfig(), options);
  ScoreAll(engine.get(), Tokens(490));
  EXPECT_GE(engine->metrics().max_resident_tokens, 100 + 32);
  EXPECT_LE(engine->metrics().max_resident_tokens, 104 + 8 + 32);
  EXPECT_EQ(engine->metrics().reserved_bytes,
            Make(SmallConfig(), options)->metrics().reserved_bytes)
      << "what was reserved at the start is enough";
  // Shorter: what a window lets go is no eviction, what the other layer loses is.
  options.sliding_window = {16, 0};
  const auto other = Make(SmallConfig(), options);
  ScoreAll(other.get(), Tokens(490));
  EXPECT_LE(other->metrics().max_resident_tokens, 64 + 32);
  EXPECT_LE(other->metrics().evicted_tokens, 490 - 64);
  EXPECT_GE(other->metrics().evicted_tokens, 490 - 64 - 32);
}

TEST(Engine, OnlyWindowsEvictNothing) {
  TinyModelOptions options{.sliding_window = {24, 40}};
  const auto engine = Make(SmallConfig(), options);
  const auto tokens = Tokens(300);
  const auto scores = ScoreAll(engine.get(), tokens);
  EXPECT_EQ(engine->metrics().evicted_tokens, 0);
  EXPECT_EQ(engine->metrics().evictions, 0);
  const auto whole = ScoreAll(Make(WholeCache(), options).get(), tokens);
  for (std::size_t i = 0; i < whole.size(); ++i) EXPECT_NEAR(scores[i], whole[i], 1e-3);
}

TEST(Engine, EndTokensStopAndAreNotRead) {
  // Learn what the model says, then call the third token an end.
  const auto free_run =
      RunRequest(Make(WholeCache()).get(), {.prompt = Tokens(20), .max_new_tokens = 10});
  const TokenId end = free_run[2];
  std::size_t first = 0;
  while (free_run[first] != end) ++first;
  FinishReason reason = FinishReason::kNone;
  const auto engine = Make(WholeCache(), {.end_tokens = {end}});
  const auto answer =
      RunRequest(engine.get(), {.prompt = Tokens(20), .max_new_tokens = 10}, &reason);
  EXPECT_EQ(reason, FinishReason::kStop);
  EXPECT_EQ(answer.size(), first + 1);
  const std::int64_t before = engine->metrics().logical_tokens;
  RunRequest(engine.get(), {.prompt = Tokens(5), .max_new_tokens = 1});
  EXPECT_EQ(engine->metrics().logical_tokens, before + 5);
  const auto ignoring = Make(WholeCache(), {.end_tokens = {end}});
  EXPECT_EQ(RunRequest(ignoring.get(),
                       {.prompt = Tokens(20), .max_new_tokens = 10, .ignore_end_tokens = true}),
            free_run);
}

TEST(Engine, ANewTurnContinuesTheText) {
  const auto prompt = Tokens(20);
  const auto more = Tokens(15, 77);
  const auto engine = Make(WholeCache());
  auto text = prompt;
  const auto first = RunRequest(engine.get(), {.prompt = prompt, .max_new_tokens = 7});
  const auto second = RunRequest(engine.get(), {.prompt = more, .max_new_tokens = 7});
  text.insert(text.end(), first.begin(), first.end());
  text.insert(text.end(), more.begin(), more.end());
  EXPECT_EQ(RunRequest(Make(WholeCache()).get(), {.prompt = text, .max_new_tokens = 7}), second);
}

TEST(Engine, CancelFromAnotherThreadEndsTheRequestOnly) {
  const auto engine = Make(SmallConfig());
  engine->Submit({.prompt = Tokens(20), .max_new_tokens = 1000000, .ignore_end_tokens = true});
  std::jthread canceller([&] { engine->Cancel(); });
  FinishReason reason = FinishReason::kNone;
  while (engine->HasWork()) reason = engine->Step().finish_reason;
  EXPECT_EQ(reason, FinishReason::kCancelled);
  EXPECT_EQ(RunRequest(engine.get(),
                       {.prompt = Tokens(5), .max_new_tokens = 3, .ignore_end_tokens = true})
                .size(),
            3U);
}

TEST(Engine, StopTokensEndAnAnswerEvenWhereEndTokensDoNot) {
  const auto free_run =
      RunRequest(Make(WholeCache()).get(), {.prompt = Tokens(20), .max_new_tokens = 10});
  const TokenId stop = free_run[2];
  const auto engine = Make(WholeCache());
  FinishReason reason = FinishReason::kNone;
  const auto answer = RunRequest(engine.get(),
                                 {.prompt = Tokens(20),
                                  .max_new_tokens = 10,
                                  .ignore_end_tokens = true,
                                  .stop_tokens = {stop}},
                                 &reason);
  EXPECT_EQ(reason, FinishReason::kStop);
  EXPECT_EQ(answer.back(), stop);
  const std::int64_t before = engine->metrics().logical_tokens;
  RunRequest(engine.get(), {.prompt = Tokens(5), .max_new_tokens = 1});
  EXPECT_EQ(engine->metrics().logical_tokens, before + 5);  // the stop token is not read
  EXPECT_THROW(engine->Submit({.prompt = Tokens(2), .max_new_tokens = 1, .stop_tokens = {61}}),
               Error);
}

TEST(Engine, RepetitionIsWhatWasSaidBefore) {
  // The tiny model likes to repeat its prompt: of several prompts some hold the likeliest token.
  int held = 0;
  for (std::uint64_t seed = 1; seed <= 40; ++seed) {
    const auto sampled = [&](double penalty, bool penalise_prompt, std::vector<TokenId> ends) {
      return RunRequest(Make(WholeCache(), {.end_tokens = std::move(ends)}).get(),
                        {.prompt = Tokens(20, seed),
                         .penalise_prompt = penalise_prompt,
                         .max_new_tokens = 1,
                         .sampling = {.repetition_penalty = penalty}})[0];
    };
    const auto prompt = Tokens(20, seed);
    const TokenId likeliest = sampled(1.0, true, {});
    if (std::find(prompt.begin(), prompt.end(), likeliest) == prompt.end()) continue;
    ++held;
    EXPECT_NE(sampled(1e3, true, {}), likeliest) << seed;
    EXPECT_EQ(sampled(1e3, false, {}), likeliest) << seed;          // the prompt is not looked at
    EXPECT_EQ(sampled(1e3, true, {likeliest}), likeliest) << seed;  // an end is no repetition
  }
  EXPECT_GT(held, 3);
}

TEST(Engine, CancelledBeforeItsFirstStepARequestLeavesTheSequenceAsItWas) {
  const auto engine = Make(WholeCache());
  const auto twin = Make(WholeCache());
  const Request first{.prompt = Tokens(20), .max_new_tokens = 4};
  RunRequest(engine.get(), first);
  RunRequest(twin.get(), first);
  engine->Submit({.prompt = Tokens(9, 3), .max_new_tokens = 4});
  engine->Cancel();
  EXPECT_EQ(engine->Step().finish_reason, FinishReason::kCancelled);
  const Request second{.prompt = Tokens(5, 2), .max_new_tokens = 6};
  EXPECT_EQ(RunRequest(engine.get(), second), RunRequest(twin.get(), second));
  EXPECT_EQ(engine->metrics().logical_tokens, twin->metrics().logical_tokens);
}

TEST(Engine, AttentionIsGatheredByTokenOnRequest) {
  const auto engine = Make(WholeCache());
  EXPECT_TRUE(engine->GatheredAttention(0).empty());
  engine->GatherAttention(true);
  RunRequest(engine.get(), {.prompt = Tokens(40), .max_new_tokens = 6});
  ASSERT_EQ(engine->cache_groups(), 2);
  for (std::int64_t group = 0; group < engine->cache_groups(); ++group) {
    const std::vector<BlockAttention> blocks = engine->GatheredAttention(group);
    ASSERT_EQ(blocks.size(), 6U);  // 45 tokens were read
    double all = 0.0;
    std::int64_t next = 0;
    for (const BlockAttention& block : blocks) {
      EXPECT_EQ(block.first_token, next);
      next += block.tokens;
      ASSERT_EQ(std::ssize(block.token_mass), block.tokens);
      double sum = 0.0;
      for (const double mass : block.token_mass) {
        EXPECT_GE(mass, 0.0);
        sum += mass;
      }
      EXPECT_DOUBLE_EQ(block.mass, sum);
      all += sum;
    }
    EXPECT_EQ(next, 45);
    // Two chunks and five tokens: one query each, whose attention sums to 1 for each of four heads.
    EXPECT_EQ(blocks.front().counted_queries, 7);
    EXPECT_EQ(blocks[4].counted_queries, 6);
    EXPECT_NEAR(all, 7.0 * 4.0, 1e-4);
    EXPECT_GT(blocks[0].token_mass[0], 0.0);
  }
  engine->GatherAttention(false);
  EXPECT_TRUE(engine->GatheredAttention(1).empty());
}

TEST(Engine, GatheredAttentionFollowsEvictions) {
  EngineConfig config = SmallConfig();
  config.eviction->grouping = Grouping::kHead;
  const auto engine = Make(config);
  const auto plain = Make(config);
  engine->GatherAttention(true);
  const Request request{.prompt = Tokens(200), .max_new_tokens = 50};
  EXPECT_EQ(RunRequest(engine.get(), request), RunRequest(plain.get(), request));
  ASSERT_EQ(engine->cache_groups(), 4);
  for (std::int64_t group = 0; group < 4; ++group) {
    std::int64_t before = -1;
    std::int64_t tokens = 0;
    for (const BlockAttention& block : engine->GatheredAttention(group)) {
      EXPECT_GT(block.first_token, before);
      EXPECT_GT(block.counted_queries, 0);
      EXPECT_LE(block.mass, 2.0 * static_cast<double>(block.counted_queries) + 1e-3);
      before = block.first_token;
      tokens += block.tokens;
    }
    EXPECT_EQ(tokens, engine->metrics().resident_tokens);
    EXPECT_GT(before, 200);
  }
  engine->Reset();
  EXPECT_TRUE(engine->GatheredAttention(0).empty());
}

TEST(Engine, ResetGivesEverythingBack) {
  const auto engine = Make(SmallConfig());
  const auto first = RunRequest(engine.get(), {.prompt = Tokens(500), .max_new_tokens = 20});
  engine->Reset();
  EXPECT_EQ(engine->metrics().cache_bytes, 0);
  EXPECT_EQ(engine->metrics().logical_tokens, 0);
  EXPECT_EQ(RunRequest(engine.get(), {.prompt = Tokens(500), .max_new_tokens = 20}), first);
}

TEST(Engine, BadRequestsChangeNothing) {
  const auto engine = Make(SmallConfig());
  EXPECT_THROW(engine->Submit({}), Error);
  EXPECT_THROW(engine->Submit({.prompt = {61}}), Error);
  EXPECT_THROW(engine->Submit({.prompt = {-1}}), Error);
  EXPECT_THROW(engine->Submit({.prompt = {1}, .max_new_tokens = -1}), Error);
  EXPECT_THROW(engine->Submit({.prompt = {1}, .sampling = {.temperature = -1.0}}), Error);
  EXPECT_FALSE(engine->HasWork());
  EXPECT_EQ(
      RunRequest(engine.get(), {.prompt = {1, 2}, .max_new_tokens = 2, .ignore_end_tokens = true})
          .size(),
      2U);
}

TEST(Engine, ASpentLimitIsAnErrorAndResetMends) {
  EngineConfig config = WholeCache();
  config.cache.limit_tokens = 64;
  const auto engine = Make(config);
  engine->Submit({.prompt = Tokens(100), .max_new_tokens = 1});
  bool failed = false;
  try {
    while (engine->HasWork()) engine->Step();
  } catch (const Error& error) {
    failed = true;
    EXPECT_EQ(error.code(), ErrorCode::kOutOfMemory);
    EXPECT_EQ(error.field(), "limit_bytes");
  }
  EXPECT_TRUE(failed);
  engine->Reset();
  EXPECT_EQ(RunRequest(engine.get(),
                       {.prompt = Tokens(50), .max_new_tokens = 2, .ignore_end_tokens = true})
                .size(),
            2U);
}

TEST(Engine, AReservationBeyondTheLimitFailsAtOnce) {
  EngineConfig config = SmallConfig();
  config.cache.limit_bytes = 1000;
  try {
    Make(config);
    FAIL();
  } catch (const Error& error) {
    EXPECT_EQ(error.code(), ErrorCode::kOutOfMemory);
  }
}

// After an unscored prompt nothing is known of the next one's first token.
TEST(Engine, AnUnscoredPromptLeavesNoLogitsToScoreBy) {
  const auto engine = Make(SmallConfig());
  const auto scores = [&](bool scored) {
    engine->Submit({.prompt = {1, 2, 3}, .score_prompt = scored});
    std::size_t count = 0;
    while (engine->HasWork()) count += engine->Step().negative_log_likelihood.size();
    return count;
  };
  EXPECT_EQ(scores(true), 2U);
  EXPECT_EQ(scores(true), 3U);
  EXPECT_EQ(scores(false), 0U);
  EXPECT_EQ(scores(true), 2U);
}

TEST(Engine, ARequestWhileOneRunsIsRefusedAndHarmsNothing) {
  const auto engine = Make(SmallConfig());
  const Request request{.prompt = Tokens(40), .max_new_tokens = 5, .ignore_end_tokens = true};
  const auto expected = RunRequest(Make(SmallConfig()).get(), request);
  engine->Submit(request);
  EXPECT_THROW(engine->Submit(request), Error);
  engine->Step();
  EXPECT_THROW(engine->Submit(request), Error);
  std::vector<TokenId> tokens;
  while (engine->HasWork()) {
    if (const StepResult step = engine->Step(); step.sampled) tokens.push_back(step.sampled->token);
  }
  EXPECT_EQ(tokens, expected);
}

// What was said in earlier requests is repetition as well.
TEST(Engine, TheRepetitionPenaltyLooksAtTheHistory) {
  const SamplingParams penalised{.repetition_penalty = 3.0};
  const auto prompt = Tokens(60);
  std::vector<TokenId> all = prompt;
  all.push_back(7);
  const Request whole{
      .prompt = all, .max_new_tokens = 20, .ignore_end_tokens = true, .sampling = penalised};
  const auto engine = Make(WholeCache());
  engine->Submit({.prompt = prompt});
  while (engine->HasWork()) engine->Step();
  Request rest = whole;
  rest.prompt = {7};
  EXPECT_EQ(RunRequest(engine.get(), rest), RunRequest(Make(WholeCache()).get(), whole));
  // And it matters.
  const auto other = Make(WholeCache());
  other->Submit({.prompt = prompt});
  while (other->HasWork()) other->Step();
  rest.sampling.penalty_window = 1;
  EXPECT_NE(RunRequest(other.get(), rest), RunRequest(Make(WholeCache()).get(), whole));
}

// In a conversation only the model's own words are, those of earlier answers among them.
TEST(Engine, TheRepetitionPenaltyOfAConversationLooksAtAllThatTheModelHasSaid) {
  const auto engine = Make(WholeCache());
  std::vector<TokenId> said;
  for (TokenId token = 0; token < 30; ++token) said.push_back(token);
  engine->Submit({.prompt = {40, 41, 42}, .penalise_prompt = false, .forced_answer = said});
  while (engine->HasWork()) engine->Step();
  engine->Submit({.prompt = {50, 51, 52},
                  .penalise_prompt = false,
                  .max_new_tokens = 10,
                  .ignore_end_tokens = true,
                  .keep_logits = true,
                  .sampling = {.repetition_penalty = 1.5}});
  int moved = 0;
  while (engine->HasWork()) {
    const StepResult step = engine->Step();
    if (!step.sampled) continue;
    std::vector<float> logits = step.logits;
    const auto likeliest = [&] {
      return static_cast<TokenId>(std::max_element(logits.begin(), logits.end()) - logits.begin());
    };
    const TokenId unpenalised = likeliest();
    for (const TokenId token : std::set<TokenId>(said.begin(), said.end())) {
      float& logit = logits[static_cast<std::size_t>(token)];
      logit = logit > 0.0F ? logit / 1.5F : logit * 1.5F;
    }
    EXPECT_EQ(step.sampled->token, likeliest());
    if (likeliest() != unpenalised) ++moved;
    said.push_back(step.sampled->token);
  }
  EXPECT_GT(moved, 0);
}

TEST(Engine, SaysHowManyTokensWereReadBeyondTheTrainedWindow) {
  const auto engine = Make(WholeCache(), {.trained_window = 64});
  EXPECT_EQ(engine->metrics().tokens_past_window, 0);
  engine->Submit({.prompt = Tokens(64)});
  while (engine->HasWork()) engine->Step();
  EXPECT_EQ(engine->metrics().tokens_past_window, 0);
  engine->Submit({.prompt = Tokens(10)});
  while (engine->HasWork()) engine->Step();
  EXPECT_EQ(engine->metrics().tokens_past_window, 10);
}

}  // namespace
}  // namespace carousel
