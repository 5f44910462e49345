// SPDX-License-Identifier: Apache-2.0
// Forks, marks, shared beginnings and preemption: whatever happens to a sequence's blocks, it says
// what one says that has read all of it alone, bit for bit.
#include <gtest/gtest.h>

#include <algorithm>
#include <map>
#include <memory>
#include <vector>

#include "carousel/engine.h"
#include "carousel/error.h"
#include "carousel/single_sequence_engine.h"
#include "engine/tiny_model.h"
#include "eviction/registry.h"
#include "testing/random_cases.h"
#include "testing/random_draws.h"

namespace carousel {
namespace {

EngineConfig SmallConfig() {
  EngineConfig config;
  config.cache.block_size = 8;
  config.chunk_size = 16;
  config.eviction = EvictionConfig{.start_size = 8, .recent_size = 16, .max_cache_size = 48};
  return config;
}

EngineConfig RandomConfig(Generator* generator) {
  constexpr KvType kTypes[] = {KvType::kF32, KvType::kF16, KvType::kInt8, KvType::kInt4};
  EngineConfig config = SmallConfig();
  config.cache.key_type = kTypes[Pick(generator, 0, 3)];
  config.cache.value_type = kTypes[Pick(generator, 0, 3)];
  if (config.cache.key_type == KvType::kInt4 || config.cache.value_type == KvType::kInt4)
    config.cache.block_size = 16;
  if (Pick(generator, 0, 4) == 0) {
    config.eviction.reset();
    return config;
  }
  EvictionConfig& eviction = *config.eviction;
  eviction.start_size = 16;
  eviction.max_cache_size = 64;
  const auto policies = RegisteredPolicies();
  eviction.policy =
      policies[static_cast<std::size_t>(Pick(generator, 0, std::ssize(policies) - 1))].name;
  if (eviction.policy != "adaptive_rkv") eviction.kvcrush_budget = Pick(generator, 0, 1);
  eviction.grouping = Pick(generator, 0, 1) == 0 ? Grouping::kLayer : Grouping::kHead;
  eviction.rotation = Pick(generator, 0, 2) == 0 ? Rotation::kKeys : Rotation::kQuery;
  if (eviction.rotation == Rotation::kQuery && Pick(generator, 0, 2) > 0) {
    config.recall = {.blocks = 2, .chunk = Pick(generator, 1, 16), .every = Pick(generator, 1, 4)};
    config.recall.promotion = Pick(generator, 0, 1) == 0 ? 2.0 : 0.5;
  }
  return config;
}

Request RandomRequest(Generator* generator) {
  Request request{.prompt = Tokens(generator, Pick(generator, 1, 70)),
                  .max_new_tokens = Pick(generator, 0, 12),
                  .ignore_end_tokens = true};
  if (Pick(generator, 0, 1) == 0) {
    request.sampling = {.temperature = 1.0,
                        .top_p = 0.9,
                        .repetition_penalty = 1.2,
                        .seed = static_cast<std::uint64_t>(Pick(generator, 0, 1000))};
  }
  return request;
}

// The words of an answer and how likely each was.
using Said = std::vector<std::pair<TokenId, float>>;

void Add(const StepResult& step, Said* said) {
  if (step.sampled) said->emplace_back(step.sampled->token, step.sampled->logprob);
}

// What the last of some requests is answered where they are all that a sequence has ever read.
Said AnswerAlone(const EngineConfig& config, const std::vector<Request>& requests) {
  const auto engine =
      SingleSequenceEngine::Create(std::make_unique<TinyModel>(TinyModelOptions{}), config);
  Said said;
  for (const Request& request : requests) {
    said.clear();
    engine->Submit(request);
    while (engine->HasWork()) Add(engine->Step(), &said);
  }
  return said;
}

Said Answer(Engine* engine, SequenceId sequence, const Request& request) {
  engine->Submit(sequence, request);
  Said said;
  while (engine->HasWork(sequence)) {
    for (const StepOutput& output : engine->Step()) {
      EXPECT_FALSE(output.failure);
      if (output.sequence == sequence) Add(output.result, &said);
    }
  }
  return said;
}

// Sequences that fork, are marked and rewound at random, and what each has read.
TEST(Checkpoints, AForkGoesOnAsOneThatHasReadAll) {
  Generator generator(23);
  for (int scenario = 0; scenario < RandomCases(40); ++scenario) {
    SCOPED_TRACE(scenario);
    const EngineConfig config = RandomConfig(&generator);
    const auto engine = Engine::Create(std::make_unique<TinyModel>(TinyModelOptions{}), config);
    std::map<SequenceId, std::vector<Request>> sequences;
    std::map<CheckpointId, std::vector<Request>> checkpoints;
    sequences[engine->Open()];
    const auto any = [&](auto& of) {
      return std::next(of.begin(), Pick(&generator, 0, std::ssize(of) - 1));
    };
    for (int act = 0; act < 30; ++act) {
      const auto at = any(sequences);
      switch (Pick(&generator, 0, 6)) {
        case 0:
          checkpoints[engine->Mark(at->first)] = at->second;
          break;
        case 1:
          sequences[engine->Fork(at->first)] = at->second;
          break;
        case 2:
          if (checkpoints.empty()) break;
          if (const auto mark = any(checkpoints); Pick(&generator, 0, 1) == 0) {
            engine->Rewind(at->first, mark->first);
            at->second = mark->second;
          } else {
            sequences[engine->Fork(mark->first)] = mark->second;
          }
          break;
        case 3:
          if (sequences.size() > 3) {
            engine->Close(at->first);
            sequences.erase(at);
          } else if (!checkpoints.empty()) {
            const auto mark = any(checkpoints);
            engine->Drop(mark->first);
            checkpoints.erase(mark);
          }
          break;
        default: {
          const Request request = RandomRequest(&generator);
          at->second.push_back(request);
          const Said said = Answer(engine.get(), at->first, request);
          ASSERT_EQ(said, AnswerAlone(config, at->second));
        }
      }
    }
    for (const auto& [sequence, read] : sequences) engine->Close(sequence);
    for (const auto& [checkpoint, read] : checkpoints) engine->Drop(checkpoint);
    EXPECT_EQ(engine->metrics().cache_bytes, 0);
    EXPECT_EQ(engine->metrics().checkpoints, 0);
  }
}

// One reading, several answers: each is what it would be alone.
TEST(Checkpoints, AnAnswerToAPromptThatWasOnlyRead) {
  Generator generator(27);
  for (int scenario = 0; scenario < RandomCases(20); ++scenario) {
    SCOPED_TRACE(scenario);
    const EngineConfig config = RandomConfig(&generator);
    const auto engine = Engine::Create(std::make_unique<TinyModel>(TinyModelOptions{}), config);
    const SequenceId sequence = engine->Open();
    const std::vector<TokenId> prompt = Tokens(&generator, Pick(&generator, 1, 150));
    EXPECT_THROW(engine->Submit(sequence, {.prompt = {}, .max_new_tokens = 1}), Error);
    Answer(engine.get(), sequence, {.prompt = prompt});
    std::map<SequenceId, Said> answers;
    std::map<SequenceId, Request> requests;
    for (int i = 0; i < 4; ++i) {
      const SequenceId fork = engine->Fork(sequence);
      Request request = RandomRequest(&generator);
      request.max_new_tokens = Pick(&generator, 1, 12);
      requests[fork] = request;
      requests[fork].prompt = prompt;
      request.prompt.clear();
      engine->Submit(fork, request);
    }
    while (engine->HasWork()) {
      for (const StepOutput& output : engine->Step()) {
        ASSERT_FALSE(output.failure);
        Add(output.result, &answers[output.sequence]);
      }
    }
    for (const auto& [fork, request] : requests)
      ASSERT_EQ(answers[fork], AnswerAlone(config, {request}));
    // Once it is answered, there is nothing to go on from.
    EXPECT_THROW(engine->Submit(requests.begin()->first, {.prompt = {}, .max_new_tokens = 1}),
                 Error);
  }
}

// Runs requests in sequences of their own, side by side, each as its turn comes.
std::vector<Said> AnswerAll(Engine* engine, const std::vector<Request>& requests) {
  std::vector<Said> answers(requests.size());
  std::map<SequenceId, std::size_t> which;
  for (std::size_t i = 0; i < requests.size(); ++i) {
    const SequenceId sequence = engine->Open();
    which[sequence] = i;
    engine->Submit(sequence, requests[i]);
  }
  while (engine->HasWork()) {
    for (const StepOutput& output : engine->Step()) {
      EXPECT_FALSE(output.failure);
      Add(output.result, &answers[which.at(output.sequence)]);
    }
  }
  for (const auto& [sequence, index] : which) engine->Close(sequence);
  return answers;
}

TEST(Checkpoints, PromptsThatBeginAlikeAreReadOnce) {
  Generator generator(29);
  for (int scenario = 0; scenario < RandomCases(30); ++scenario) {
    SCOPED_TRACE(scenario);
    EngineConfig config = RandomConfig(&generator);
    config.checkpoint_bytes = std::int64_t{64} << 20;
    config.scheduler.max_running = Pick(&generator, 1, 8);
    const std::vector<TokenId> common = Tokens(&generator, 80);
    std::vector<Request> requests;
    std::int64_t prompts = 0;
    for (int i = 0; i < 8; ++i) {
      Request request = RandomRequest(&generator);
      request.prompt.insert(request.prompt.begin(), common.begin(), common.end());
      prompts += std::ssize(request.prompt);
      requests.push_back(std::move(request));
    }
    const auto engine = Engine::Create(std::make_unique<TinyModel>(TinyModelOptions{}), config);
    const std::vector<Said> answers = AnswerAll(engine.get(), requests);
    for (std::size_t i = 0; i < requests.size(); ++i)
      ASSERT_EQ(answers[i], AnswerAlone(config, {requests[i]})) << i;
    const EngineMetrics metrics = engine->metrics();
    // Five chunks that all begin with, read by one.
    EXPECT_GE(metrics.reused_tokens, 7 * std::ssize(common));
    EXPECT_EQ(metrics.checkpoint_hits, 7);
    EXPECT_LE(metrics.rows, prompts - 7 * std::ssize(common) + 8 * 12);
    EXPECT_GT(metrics.checkpoints, 0);
  }
}

// What is pinned is part of what a sequence becomes.
TEST(Checkpoints, PinsAreNotMixedUp) {
  Generator generator(31);
  EngineConfig config = SmallConfig();
  config.eviction->max_cache_size = 64;
  config.checkpoint_bytes = std::int64_t{64} << 20;
  std::vector<Request> requests(3, {.prompt = Tokens(&generator, 200), .max_new_tokens = 6});
  requests[1].pinned = {{.begin = 24, .end = 30}};
  const auto engine = Engine::Create(std::make_unique<TinyModel>(TinyModelOptions{}), config);
  const std::vector<Said> answers = AnswerAll(engine.get(), requests);
  for (std::size_t i = 0; i < requests.size(); ++i)
    EXPECT_EQ(answers[i], AnswerAlone(config, {requests[i]})) << i;
  EXPECT_EQ(engine->metrics().checkpoint_hits, 1);
}

// A sequence that goes on from a checkpoint counts what it would have counted itself.
TEST(Checkpoints, WhatWasReadByAnotherOneCounts) {
  Generator generator(61);
  EngineConfig config = SmallConfig();
  config.checkpoint_bytes = std::int64_t{64} << 20;
  const Request request{.prompt = Tokens(&generator, 150), .max_new_tokens = 2};
  const auto engine = Engine::Create(std::make_unique<TinyModel>(TinyModelOptions{}), config);
  const SequenceId first = engine->Open();
  Answer(engine.get(), first, request);
  const SequenceId second = engine->Open();
  Answer(engine.get(), second, {.prompt = Tokens(&generator, 100)});
  const std::int64_t evictions_before = engine->metrics(second).evictions;
  EXPECT_GT(evictions_before, 0);
  engine->Reset(second);
  Answer(engine.get(), second, request);
  ASSERT_GT(engine->metrics(second).reused_tokens, 0);
  const SequenceMetrics alone = engine->metrics(first);
  EXPECT_GT(alone.evictions, 2);
  EXPECT_EQ(engine->metrics(second).evictions, evictions_before + alone.evictions);
  EXPECT_EQ(engine->metrics(second).max_resident_tokens, alone.max_resident_tokens);
}

// The engine's own settings are the same settings, however its limit was given.
TEST(Checkpoints, AreSharedWithSequencesThatAskForTheEnginesSettings) {
  Generator generator(67);
  EngineConfig config = SmallConfig();
  config.checkpoint_bytes = std::int64_t{64} << 20;
  config.cache.limit_tokens = 400;
  const auto engine = Engine::Create(std::make_unique<TinyModel>(TinyModelOptions{}), config);
  const Request request{.prompt = Tokens(&generator, 100), .max_new_tokens = 2};
  const Said said = Answer(engine.get(), engine->Open(), request);
  std::int64_t hits = 0;
  EngineConfig no_limits = config;
  no_limits.cache.limit_tokens = 0;
  no_limits.checkpoint_bytes = 0;
  for (const EngineConfig& own : {config, engine->config(), no_limits}) {
    EXPECT_EQ(Answer(engine.get(), engine->Open(own), request), said);
    EXPECT_EQ(engine->metrics().checkpoint_hits, ++hits);
  }
}

// Under one limit for all, what a checkpoint stores could push out what a sequence has stored.
TEST(Checkpoints, CostNoSequenceItsStoredBlocks) {
  Generator generator(71);
  EngineConfig config = SmallConfig();
  config.recall = {.blocks = 2, .chunk = 8, .every = 2};
  config.recall.limit_bytes = 36'000;
  config.checkpoint_bytes = std::int64_t{64} << 20;
  const std::vector<TokenId> common = Tokens(&generator, 200);
  const auto engine = Engine::Create(std::make_unique<TinyModel>(TinyModelOptions{}), config);
  EngineConfig no_checkpoints = config;
  no_checkpoints.checkpoint_bytes = 0;
  for (int i = 0; i < 8; ++i) {
    Request request{.prompt = common, .max_new_tokens = 20, .ignore_end_tokens = true};
    const std::vector<TokenId> own = Tokens(&generator, 100);
    request.prompt.insert(request.prompt.end(), own.begin(), own.end());
    const auto other =
        Engine::Create(std::make_unique<TinyModel>(TinyModelOptions{}), no_checkpoints);
    const SequenceId alone = other->Open();
    const SequenceId sequence = engine->Open();
    ASSERT_EQ(Answer(engine.get(), sequence, request), Answer(other.get(), alone, request)) << i;
    const SequenceMetrics metrics = engine->metrics(sequence);
    EXPECT_EQ(metrics.recall_stored_tokens, other->metrics(alone).recall_stored_tokens);
    EXPECT_EQ(metrics.recall_dropped_tokens, other->metrics(alone).recall_dropped_tokens);
    EXPECT_GT(metrics.recall_dropped_tokens, 0);
    engine->Close(sequence);
  }
}

// Who is watched reads its tokens itself, though another one has read them.
TEST(Checkpoints, WhoIsWatchedReadsItself) {
  Generator generator(73);
  EngineConfig config = SmallConfig();
  config.checkpoint_bytes = std::int64_t{64} << 20;
  const auto engine = Engine::Create(std::make_unique<TinyModel>(TinyModelOptions{}), config);
  const Request request{.prompt = Tokens(&generator, 100), .max_new_tokens = 1};
  const SequenceId first = engine->Open();
  const SequenceId watched = engine->Open();
  engine->Submit(first, request);
  engine->Submit(watched, request);
  for (int step = 0; step < 3; ++step) engine->Step();
  const std::int64_t read = engine->metrics(watched).logical_tokens;
  ASSERT_GT(read, 0);
  engine->GatherAttention(watched, true);
  while (engine->HasWork()) engine->Step();
  EXPECT_EQ(engine->metrics(watched).logical_tokens, 100);
  std::int64_t queries = 0;
  for (const BlockAttention& block : engine->GatheredAttention(watched, 0))
    queries = std::max(queries, block.counted_queries);
  // One for each step that it has taken since, of which none was another one's.
  EXPECT_GE(queries, (100 - read) / config.chunk_size);
}

// What a policy remembers is part of a checkpoint.
TEST(Checkpoints, CountWhatPoliciesRemember) {
  Generator generator(79);
  std::map<std::string, std::int64_t> bytes;
  for (const char* policy : {"window", "h2o", "expected_attention", "adaptive_rkv"}) {
    EngineConfig config = SmallConfig();
    config.eviction->policy = policy;
    const auto engine = Engine::Create(std::make_unique<TinyModel>(TinyModelOptions{}), config);
    const SequenceId sequence = engine->Open();
    Answer(engine.get(), sequence, {.prompt = Tokens(&generator, 32)});
    engine->Mark(sequence);
    bytes[policy] = engine->metrics().checkpoint_bytes;
  }
  const ModelSpec spec = TinyModel({}).spec();
  std::int64_t products = 0;  // expected_attention: of each query head's numbers with each other
  for (const AttentionLayerSpec& layer : spec.layers)
    products += layer.query_heads * layer.key_dim * layer.key_dim *
                static_cast<std::int64_t>(sizeof(double));
  EXPECT_GE(bytes["expected_attention"], bytes["window"] + products);
  for (const char* policy : {"h2o", "adaptive_rkv"}) EXPECT_GT(bytes[policy], bytes["window"]);
}

TEST(Checkpoints, KeepWithinTheirLimit) {
  Generator generator(37);
  EngineConfig config = SmallConfig();
  config.checkpoint_bytes = 100'000;
  const auto engine = Engine::Create(std::make_unique<TinyModel>(TinyModelOptions{}), config);
  std::int64_t most = 0;
  for (int i = 0; i < 20; ++i) {
    AnswerAll(engine.get(), {{.prompt = Tokens(&generator, 100), .max_new_tokens = 1}});
    most = std::max(most, engine->metrics().checkpoint_bytes);
    ASSERT_LE(engine->metrics().checkpoint_bytes, config.checkpoint_bytes);
  }
  EXPECT_GT(most, config.checkpoint_bytes / 2);
}

// Room for fewer sequences than run: some leave the pools and come back.
TEST(Preemption, ChangesNoAnswer) {
  Generator generator(41);
  std::int64_t preemptions = 0;
  for (int scenario = 0; scenario < RandomCases(30); ++scenario) {
    SCOPED_TRACE(scenario);
    EngineConfig config = RandomConfig(&generator);
    config.checkpoint_bytes = Pick(&generator, 0, 1) * (std::int64_t{1} << 20);
    config.scheduler.max_running = 6;
    if (Pick(&generator, 0, 1) == 0) config.swap_directory = ::testing::TempDir();
    // A sequence alone has room.
    config.cache.limit_tokens = Pick(&generator, 112, 240);
    std::vector<Request> requests;
    for (int i = 0; i < 10; ++i) {
      requests.push_back(RandomRequest(&generator));
      requests.back().priority = Pick(&generator, 0, 2);
    }
    const auto engine = Engine::Create(std::make_unique<TinyModel>(TinyModelOptions{}), config);
    const std::vector<Said> answers = AnswerAll(engine.get(), requests);
    for (std::size_t i = 0; i < requests.size(); ++i)
      ASSERT_EQ(answers[i], AnswerAlone(config, {requests[i]})) << i;
    preemptions += engine->metrics().preemptions;
    EXPECT_EQ(engine->metrics().moved_out_bytes, 0);
    EXPECT_LE(engine->metrics().reserved_bytes, engine->metrics().limit_bytes);
  }
  EXPECT_GT(preemptions, RandomCases(30));
}

// One that nobody asks anything makes room for those that are asked, and is what it was.
TEST(Preemption, WhoIsIdleLeavesFirst) {
  Generator generator(43);
  EngineConfig config = SmallConfig();
  config.cache.limit_tokens = 80;
  const auto engine = Engine::Create(std::make_unique<TinyModel>(TinyModelOptions{}), config);
  std::vector<SequenceId> sequences;
  std::map<SequenceId, std::vector<Request>> read;
  for (int i = 0; i < 4; ++i) sequences.push_back(engine->Open());
  for (int turn = 0; turn < 12; ++turn) {
    const SequenceId sequence = sequences[static_cast<std::size_t>(turn % 4)];
    const Request request = RandomRequest(&generator);
    read[sequence].push_back(request);
    ASSERT_EQ(Answer(engine.get(), sequence, request), AnswerAlone(config, read[sequence]));
  }
  EXPECT_GT(engine->metrics().preemptions, 4);
}

// Their second turns all wait at once, with blocks in the pools and out of them.
TEST(Preemption, WhoWaitsLeavesAsWell) {
  Generator generator(47);
  EngineConfig config = SmallConfig();
  config.cache.limit_tokens = 96;
  config.scheduler.max_running = 2;
  const auto engine = Engine::Create(std::make_unique<TinyModel>(TinyModelOptions{}), config);
  std::map<SequenceId, std::vector<Request>> read;
  std::map<SequenceId, Said> said;
  for (int i = 0; i < 5; ++i) read[engine->Open()];
  for (int turn = 0; turn < 4; ++turn) {
    for (auto& [sequence, requests] : read) {
      requests.push_back(RandomRequest(&generator));
      said[sequence].clear();
      engine->Submit(sequence, requests.back());
    }
    for (int step = 0; engine->HasWork(); ++step) {
      ASSERT_LT(step, 1000);
      for (const StepOutput& output : engine->Step()) {
        ASSERT_FALSE(output.failure);
        Add(output.result, &said[output.sequence]);
      }
    }
    for (const auto& [sequence, requests] : read)
      ASSERT_EQ(said[sequence], AnswerAlone(config, requests));
  }
  EXPECT_GT(engine->metrics().preemptions, 5);
}

// Runs until all is done, and returns which sequence ended when.
std::vector<SequenceId> OrderOfEnds(Engine* engine) {
  std::vector<SequenceId> order;
  for (int step = 0; engine->HasWork(); ++step) {
    EXPECT_LT(step, 2000);
    if (step == 2000) break;
    for (const StepOutput& output : engine->Step()) {
      EXPECT_FALSE(output.failure);
      if (output.result.finish_reason != FinishReason::kNone) order.push_back(output.sequence);
    }
  }
  return order;
}

Request Reading(std::int64_t tokens, std::int64_t answer, std::int64_t priority = 0) {
  Generator generator(83);
  return {.prompt = Tokens(&generator, tokens),
          .max_new_tokens = answer,
          .ignore_end_tokens = true,
          .priority = priority};
}

// One that comes back comes before some that run: these leave for it.
TEST(Preemption, WhoComesBackTakesTheRoomOfLaterOnes) {
  EngineConfig config = SmallConfig();
  config.cache.limit_tokens = 80;
  const auto engine = Engine::Create(std::make_unique<TinyModel>(TinyModelOptions{}), config);
  const SequenceId urgent = engine->Open();
  const SequenceId patient = engine->Open();
  Answer(engine.get(), urgent, Reading(48, 2));
  engine->Submit(patient, Reading(48, 200));
  for (int step = 0; step < 10; ++step) engine->Step();
  ASSERT_GT(engine->metrics().moved_out_bytes, 0);
  engine->Submit(urgent, Reading(8, 2, /*priority=*/1));
  EXPECT_EQ(OrderOfEnds(engine.get()), (std::vector<SequenceId>{urgent, patient}));
}

// Nobody asks the third anything, so it leaves for one that comes back, though others run.
TEST(Preemption, WhoComesBackTakesTheRoomOfIdleOnes) {
  EngineConfig config = SmallConfig();
  config.cache.limit_tokens = 112;
  const auto engine = Engine::Create(std::make_unique<TinyModel>(TinyModelOptions{}), config);
  const SequenceId comes_back = engine->Open();
  const SequenceId runs = engine->Open();
  const SequenceId idle = engine->Open();
  Answer(engine.get(), comes_back, Reading(40, 2));
  Answer(engine.get(), idle, Reading(40, 2));
  engine->Submit(runs, Reading(40, 100));
  for (int step = 0; step < 6; ++step) engine->Step();
  ASSERT_GT(engine->metrics().moved_out_bytes, 0);
  engine->Submit(comes_back, Reading(8, 2));
  EXPECT_EQ(OrderOfEnds(engine.get()), (std::vector<SequenceId>{comes_back, runs}));
}

// Who has nothing to move out waits as well, and leaves nothing in every step.
TEST(Preemption, WhoHasNoBlocksWaitsForRoom) {
  EngineConfig config = SmallConfig();
  config.cache.limit_tokens = 72;
  config.scheduler.max_running = 4;
  const auto engine = Engine::Create(std::make_unique<TinyModel>(TinyModelOptions{}), config);
  EngineConfig whole = config;
  whole.eviction.reset();
  const SequenceId large = engine->Open(whole);
  engine->Submit(large, Reading(60, 8));
  for (int step = 0; step < 5; ++step) engine->Step();
  const SequenceId late = engine->Open();
  engine->Submit(late, Reading(16, 2));
  for (int step = 0; step < 3; ++step) {
    engine->Step();
    EXPECT_EQ(engine->metrics().requests_waiting, 1);
    EXPECT_EQ(engine->metrics().preemptions, 0);
  }
  EXPECT_EQ(OrderOfEnds(engine.get()), (std::vector<SequenceId>{large, late}));
  EXPECT_EQ(engine->metrics().preemptions, 1);  // once nobody asks the first anything
}

// The limit is one of bytes, whatever shapes they are used for.
TEST(Preemption, OneShapeMakesRoomForAnother) {
  EngineConfig config = SmallConfig();
  config.cache.limit_tokens = 80;
  const auto engine = Engine::Create(std::make_unique<TinyModel>(TinyModelOptions{}), config);
  EngineConfig other = config;
  other.cache.key_type = other.cache.value_type = KvType::kInt8;
  for (int round = 0; round < 3; ++round) {
    for (const EngineConfig& own : {config, other}) {
      const SequenceId sequence = engine->Open(own);
      EXPECT_EQ(Answer(engine.get(), sequence, Reading(100, 4)),
                AnswerAlone(own, {Reading(100, 4)}));
      if (round == 2) continue;  // moved out
      engine->Close(sequence);
    }
  }
  EXPECT_LE(engine->metrics().reserved_bytes, engine->metrics().limit_bytes);
}

}  // namespace
}  // namespace carousel
