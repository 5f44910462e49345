// SPDX-License-Identifier: Apache-2.0
// Answers that are guessed ahead, against the same answers without: same words, same logits, same
// cache, bit for bit on a model that computes each row by itself.
#include <gtest/gtest.h>

#include <functional>
#include <map>
#include <memory>
#include <vector>

#include "carousel/engine.h"
#include "carousel/error.h"
#include "carousel/single_sequence_engine.h"
#include "engine/draft_length.h"
#include "engine/prompt_lookup.h"
#include "engine/tiny_model.h"
#include "eviction/registry.h"
#include "testing/failing_model.h"
#include "testing/knowing_proposer.h"
#include "testing/random_cases.h"
#include "testing/random_draws.h"

namespace carousel {
namespace {

// --- How long drafts are -------------------------------------------------------------------------

TEST(DraftLength, GrowsWhileRightAndPausesWhereWrong) {
  DraftLength length(15);
  EXPECT_EQ(length.Next(), 4);
  length.NoteDraft(4, 4);
  EXPECT_EQ(length.Next(), 8);
  length.NoteDraft(8, 8);
  EXPECT_EQ(length.Next(), 15);
  length.NoteDraft(15, 2);
  EXPECT_EQ(length.Next(), 3);
  std::vector<std::int64_t> pauses;
  for (int wrong = 0; wrong < 9; ++wrong) {
    length.NoteDraft(length.Next(), 0);
    pauses.push_back(0);
    for (; length.Next() == 0; length.NoteNone()) ++pauses.back();
  }
  EXPECT_EQ(pauses, (std::vector<std::int64_t>{1, 2, 4, 8, 16, 32, 64, 64, 64}));
  length.NoteDraft(4, 4);
  length.NoteDraft(8, 0);
  length.NoteNone();
  EXPECT_EQ(length.Next(), 4);
}

// --- Prompt lookup -------------------------------------------------------------------------------

// The same rule over all earlier places, newest first, without a table.
std::vector<TokenId> SlowLookup(const std::vector<TokenId>& seen, std::int64_t ngram,
                                std::int64_t most) {
  const std::int64_t end = std::ssize(seen);
  std::int64_t best = -1;
  std::int64_t longest = ngram - 1;
  for (std::int64_t place = end - 1; place >= ngram; --place) {
    std::int64_t common = 0;
    while (common < std::min(place, PromptLookup::kLongestMatch) &&
           seen[static_cast<std::size_t>(place - 1 - common)] ==
               seen[static_cast<std::size_t>(end - 1 - common)])
      ++common;
    if (common > longest) {
      longest = common;
      best = place;
    }
  }
  std::vector<TokenId> all = seen;
  std::vector<TokenId> draft;
  for (std::int64_t i = 0; best >= 0 && i < most; ++i) {
    draft.push_back(all[static_cast<std::size_t>(best + i)]);
    all.push_back(draft.back());
  }
  return draft;
}

TEST(PromptLookup, FindsWhatAScanFinds) {
  Generator generator(5);
  std::int64_t found = 0;
  for (int round = 0; round < RandomCases(200); ++round) {
    // Many words, so that no n-gram has more places than are looked at.
    const TokenId words = static_cast<TokenId>(Pick(&generator, 8, 12));
    const std::int64_t ngram = Pick(&generator, 2, 4);
    PromptLookup lookup(ngram);
    std::vector<TokenId> seen;
    while (seen.size() < 300) {
      std::vector<TokenId> more;
      for (std::int64_t i = Pick(&generator, 0, 20); i > 0; --i)
        more.push_back(static_cast<TokenId>(Pick(&generator, 0, words)));
      lookup.See(more);
      seen.insert(seen.end(), more.begin(), more.end());
      const std::int64_t most = Pick(&generator, 1, 20);
      std::vector<TokenId> draft;
      lookup.Propose(most, &draft);
      ASSERT_EQ(draft, SlowLookup(seen, ngram, most));
      if (!draft.empty()) ++found;
    }
  }
  EXPECT_GT(found, RandomCases(200) / 2);
}

TEST(PromptLookup, ReadsOnInWhatItGuesses) {
  PromptLookup lookup(2);
  const std::vector<TokenId> seen = {1, 2, 3, 1, 2, 3, 1, 2};
  lookup.See(seen);
  std::vector<TokenId> draft;
  lookup.Propose(7, &draft);
  EXPECT_EQ(draft, (std::vector<TokenId>{3, 1, 2, 3, 1, 2, 3}));
}

TEST(PromptLookup, GuessesNothingWhereTheLastWordsAreNew) {
  PromptLookup lookup(3);
  std::vector<TokenId> draft;
  lookup.Propose(4, &draft);
  const std::vector<TokenId> seen = {1, 2, 3, 4, 9, 2, 3};
  lookup.See(seen);
  lookup.Propose(4, &draft);
  EXPECT_TRUE(draft.empty());
}

// --- Against the same without --------------------------------------------------------------------

EngineConfig RandomConfig(Generator* generator) {
  constexpr KvType kTypes[] = {KvType::kF32, KvType::kF16, KvType::kInt8, KvType::kInt4};
  constexpr PositionPolicy kPositions[] = {PositionPolicy::kAuto, PositionPolicy::kKeep,
                                           PositionPolicy::kCompact};
  EngineConfig config;
  config.cache.block_size = 16;
  config.chunk_size = 16;
  config.scheduler = {.max_running = 6};
  config.cache.key_type = kTypes[Pick(generator, 0, 3)];
  config.cache.value_type = kTypes[Pick(generator, 0, 3)];
  config.eviction = EvictionConfig{.start_size = 16, .recent_size = 16, .max_cache_size = 64};
  if (Pick(generator, 0, 5) == 0) {
    config.eviction.reset();
    return config;
  }
  EvictionConfig& eviction = *config.eviction;
  const auto policies = RegisteredPolicies();
  eviction.policy =
      policies[static_cast<std::size_t>(Pick(generator, 0, std::ssize(policies) - 1))].name;
  eviction.max_cache_size = Pick(generator, 0, 1) == 0 ? 64 : 80;
  eviction.grouping = Pick(generator, 0, 1) == 0 ? Grouping::kLayer : Grouping::kHead;
  if (eviction.grouping == Grouping::kHead && Pick(generator, 0, 1) == 0)
    eviction.budget = Budget::kAdaptive;
  eviction.positions = kPositions[Pick(generator, 0, 2)];
  eviction.rotation = Pick(generator, 0, 2) == 0 ? Rotation::kKeys : Rotation::kQuery;
  if (eviction.rotation == Rotation::kQuery && Pick(generator, 0, 3) > 0)
    config.recall = {.blocks = 2, .chunk = Pick(generator, 1, 16), .every = Pick(generator, 1, 4)};
  return config;
}

Request RandomRequest(Generator* generator) {
  Request request{.prompt = Tokens(generator, Pick(generator, 1, 150)),
                  .max_new_tokens = Pick(generator, 1, 80),
                  .ignore_end_tokens = true};
  request.keep_logits = true;
  if (Pick(generator, 0, 1) == 0) {
    request.sampling = {.temperature = 1.0,
                        .top_p = 0.9,
                        .repetition_penalty = 1.2,
                        .frequency_penalty = 0.3,
                        .penalty_window = 20,
                        .seed = static_cast<std::uint64_t>(Pick(generator, 0, 1000))};
  }
  if (Pick(generator, 0, 3) == 0)
    request.stop_tokens = {static_cast<TokenId>(Pick(generator, 0, 60))};
  return request;
}

std::vector<double> Numbers(const StepResult& step) {
  std::vector<double> numbers(step.logits.begin(), step.logits.end());
  if (step.sampled) {
    numbers.push_back(step.sampled->token);
    numbers.push_back(step.sampled->logprob);
  }
  numbers.push_back(static_cast<double>(step.tokens_processed));
  numbers.push_back(static_cast<double>(step.evicted_tokens));
  numbers.push_back(static_cast<double>(step.finish_reason));
  return numbers;
}

std::vector<double> Numbers(const SequenceMetrics& metrics) {
  std::vector<double> numbers;
  for (const std::int64_t count :
       {metrics.logical_tokens, metrics.resident_tokens, metrics.max_resident_tokens,
        metrics.evicted_tokens, metrics.forgotten_tokens, metrics.evictions,
        metrics.tokens_past_window, metrics.cache_bytes, metrics.recall_stored_tokens,
        metrics.recalled_blocks, metrics.promoted_blocks}) {
    numbers.push_back(static_cast<double>(count));
  }
  numbers.push_back(metrics.requantisation_error);
  return numbers;
}

std::vector<double> Numbers(const std::vector<BlockAttention>& blocks) {
  std::vector<double> numbers;
  for (const BlockAttention& block : blocks) {
    numbers.push_back(static_cast<double>(block.first_token));
    numbers.push_back(static_cast<double>(block.tokens));
    numbers.push_back(static_cast<double>(block.counted_queries));
    numbers.insert(numbers.end(), block.token_mass.begin(), block.token_mass.end());
  }
  return numbers;
}

// A sequence that is guessed ahead, and its twin that is alone and is not.
struct Pair {
  SequenceId sequence;
  std::unique_ptr<SingleSequenceEngine> plain;
  std::vector<std::vector<double>> steps;    // of the twin's answer, that are yet to come
  std::vector<std::vector<double>> metrics;  // after each of them
};

class Guessing {
 public:
  Guessing(Generator* generator, std::int64_t pairs) : generator_(generator) {
    EngineConfig own;
    own.cache.block_size = 16;
    own.chunk_size = 16;
    own.eviction = EvictionConfig{.start_size = 16, .recent_size = 16, .max_cache_size = 64};
    own.scheduler = {.max_running = 6, .max_rows = 80};
    engine_ = Engine::Create(
        std::make_unique<FailingModel>(std::make_unique<TinyModel>(Model()), &failure_), own);
    for (std::int64_t i = 0; i < pairs; ++i) {
      const EngineConfig config = RandomConfig(generator);
      pairs_.push_back(
          {.sequence = engine_->Open(config),
           .plain = SingleSequenceEngine::Create(std::make_unique<TinyModel>(Model()), config),
           .steps = {},
           .metrics = {}});
      const bool gathers = Pick(generator, 0, 2) == 0;
      engine_->GatherAttention(pairs_.back().sequence, gathers);
      pairs_.back().plain->GatherAttention(gathers);
    }
  }

  void Run(int requests) {
    for (int request = 0; request < requests; ++request) {
      for (Pair& pair : pairs_) Ask(&pair);
      while (engine_->HasWork() && !testing::Test::HasFailure()) {
        if (Pick(generator_, 0, 9) == 0) {
          failure_.layer = Pick(generator_, 0, 1);
          Step();
          failure_.layer.reset();
        }
        if (engine_->HasWork()) Step();
      }
      for (const Pair& pair : pairs_) {
        EXPECT_TRUE(pair.steps.empty());
        for (std::int64_t group = 0; group < pair.plain->cache_groups(); ++group) {
          EXPECT_EQ(Numbers(engine_->GatheredAttention(pair.sequence, group)),
                    Numbers(pair.plain->GatheredAttention(group)));
        }
      }
      if (testing::Test::HasFailure()) return;
    }
  }

  const Engine& engine() const { return *engine_; }
  std::int64_t evictions() const {
    std::int64_t evictions = 0;
    for (const Pair& pair : pairs_) evictions += pair.plain->metrics().evictions;
    return evictions;
  }
  void Close() {
    for (const Pair& pair : pairs_) engine_->Close(pair.sequence);
    EXPECT_EQ(engine_->metrics().cache_bytes, 0);
  }

 private:
  // Keys reach the window's end, so that all positions are settled anew now and then.
  static TinyModelOptions Model() { return {.trained_window = 256, .sliding_window = {0, 40}}; }

  // The twin answers first, so that the guesses can be right.
  void Ask(Pair* pair) {
    Request request = RandomRequest(generator_);
    const std::int64_t before = pair->plain->metrics().logical_tokens;
    pair->plain->Submit(request);
    std::vector<TokenId> answer;
    std::int64_t read = 0;
    while (pair->plain->HasWork()) {
      const StepResult step = pair->plain->Step();
      if (answer.empty()) read += step.tokens_processed;
      if (step.sampled) answer.push_back(step.sampled->token);
      pair->steps.push_back(Numbers(step));
      pair->metrics.push_back(Numbers(pair->plain->metrics()));
    }
    request.sampling.max_draft_tokens = Pick(generator_, 1, 20);
    if (Pick(generator_, 0, 3) > 0) {
      request.proposer = std::make_shared<KnowingProposer>(
          before + read, answer, Pick(generator_, 2, 12), (*generator_)());
    }
    engine_->Submit(pair->sequence, std::move(request));
  }

  void Step() {
    std::map<SequenceId, std::vector<double>> last;
    for (const StepOutput& output : engine_->Step()) {
      if (output.failure) continue;
      Pair& pair = *std::find_if(pairs_.begin(), pairs_.end(), [&](const Pair& each) {
        return each.sequence == output.sequence;
      });
      ASSERT_FALSE(pair.steps.empty());
      ASSERT_EQ(Numbers(output.result), pair.steps.front());
      pair.steps.erase(pair.steps.begin());
      last[output.sequence] = pair.metrics.front();
      pair.metrics.erase(pair.metrics.begin());
    }
    for (const auto& [sequence, metrics] : last)
      ASSERT_EQ(Numbers(engine_->metrics(sequence)), metrics);
  }

  Generator* generator_;
  Failure failure_;
  std::unique_ptr<Engine> engine_;
  std::vector<Pair> pairs_;
};

TEST(Speculation, ChangesNothingButHowManyPassesThereAre) {
  Generator generator(23);
  std::int64_t accepted = 0;
  std::int64_t rejected = 0;
  std::int64_t evictions = 0;
  constexpr int kScenarios = RandomCases(20);
  for (int scenario = 0; scenario < kScenarios; ++scenario) {
    SCOPED_TRACE(scenario);
    Guessing guessing(&generator, 4);
    guessing.Run(3);
    if (testing::Test::HasFailure()) return;
    const EngineMetrics metrics = guessing.engine().metrics();
    accepted += metrics.accepted_tokens;
    rejected += metrics.drafted_tokens - metrics.accepted_tokens;
    evictions += guessing.evictions();
    guessing.Close();
  }
  EXPECT_GT(accepted, 50 * kScenarios);
  EXPECT_GT(rejected, 10 * kScenarios);
  EXPECT_GT(evictions, 5 * kScenarios);
}

// --- One answer ----------------------------------------------------------------------------------

std::unique_ptr<SingleSequenceEngine> PlainEngine() {
  EngineConfig config;
  config.eviction.reset();
  return SingleSequenceEngine::Create(std::make_unique<TinyModel>(TinyModelOptions{}), config);
}

std::vector<TokenId> AnswerOf(SingleSequenceEngine* engine, Request request) {
  std::vector<TokenId> answer;
  engine->Submit(std::move(request));
  while (engine->HasWork()) {
    const StepResult step = engine->Step();
    if (step.sampled) answer.push_back(step.sampled->token);
  }
  return answer;
}

Request Asking() {
  return {.prompt = {1, 2, 3, 4, 5}, .max_new_tokens = 40, .ignore_end_tokens = true};
}

TEST(Speculation, WhoWantsToStopIsAskedBeforeMoreIsKept) {
  const std::vector<TokenId> whole = AnswerOf(PlainEngine().get(), Asking());
  for (std::size_t length = 1; length < whole.size(); length += 3) {
    const auto engine = PlainEngine();
    Request request = Asking();
    std::vector<TokenId> asked;
    request.stop_after = [&](TokenId token) {
      asked.push_back(token);
      return asked.size() == length;
    };
    request.sampling.max_draft_tokens = 20;
    request.proposer = std::make_shared<KnowingProposer>(5, whole, 1000000, 1);
    const std::vector<TokenId> answer = AnswerOf(engine.get(), request);
    EXPECT_EQ(answer, std::vector<TokenId>(whole.begin(), whole.begin() + std::ssize(answer)));
    EXPECT_EQ(answer.size(), length);
    EXPECT_EQ(asked, answer);
    // Its last token waits for the next request, as after any answer that was cut short.
    EXPECT_EQ(engine->metrics().logical_tokens, 5 + std::ssize(answer) - 1);
    // The same history: the same answer to what follows.
    const auto plain = PlainEngine();
    Request cut = Asking();
    cut.max_new_tokens = std::ssize(answer);
    AnswerOf(plain.get(), cut);
    EXPECT_EQ(AnswerOf(engine.get(), Asking()), AnswerOf(plain.get(), Asking()));
  }
}

// Words outside the vocabulary, more than was asked for, and an exception.
class WrongProposer final : public DraftProposer {
 public:
  explicit WrongProposer(int how) : how_(how) {}
  void See(std::span<const TokenId> /*tokens*/) override {
    if (how_ == 0) throw std::runtime_error("no");
  }
  void Propose(std::int64_t most, std::vector<TokenId>* draft) override {
    if (how_ == 1) throw std::runtime_error("no");
    if (how_ == 2) draft->assign(static_cast<std::size_t>(most) + 5, 7);
    if (how_ == 3) draft->assign(2, 61);
    if (how_ == 4) draft->assign(2, -1);
  }

 private:
  int how_;
};

TEST(Speculation, AWrongProposerChangesNothing) {
  const std::vector<TokenId> whole = AnswerOf(PlainEngine().get(), Asking());
  for (int how = 0; how < 5; ++how) {
    SCOPED_TRACE(how);
    Request request = Asking();
    request.sampling.max_draft_tokens = 6;
    request.proposer = std::make_shared<WrongProposer>(how);
    EXPECT_EQ(AnswerOf(PlainEngine().get(), request), whole);
  }
}

TEST(Speculation, TakesFewPassesWhereGuessesAreRight) {
  const std::vector<TokenId> whole = AnswerOf(PlainEngine().get(), Asking());
  EngineConfig config;
  config.eviction.reset();
  const auto engine = Engine::Create(std::make_unique<TinyModel>(TinyModelOptions{}), config);
  Request request = Asking();
  request.sampling.max_draft_tokens = 15;
  request.proposer = std::make_shared<KnowingProposer>(5, whole, 1000000, 1);
  engine->Submit(engine->Open(), request);
  while (engine->HasWork()) engine->Step();
  const EngineMetrics metrics = engine->metrics();
  EXPECT_LE(metrics.steps, 8);
  EXPECT_EQ(metrics.accepted_tokens, metrics.drafted_tokens);
  EXPECT_EQ(metrics.accepted_tokens + metrics.steps, 40);
  EXPECT_EQ(metrics.time_per_output_token.count(), 39);
}

TEST(Speculation, BadParametersAreRefused) {
  for (const auto& [most, ngram] : {std::pair(-1, 3), {64, 3}, {4, 0}, {4, 33}}) {
    Request request = Asking();
    request.sampling.max_draft_tokens = most;
    request.sampling.draft_ngram = ngram;
    EXPECT_THROW(PlainEngine()->Submit(request), Error);
  }
}

}  // namespace
}  // namespace carousel
