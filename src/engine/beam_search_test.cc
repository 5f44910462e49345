// SPDX-License-Identifier: Apache-2.0
// Beam search against the same search as books have it, which reads everything again for each word
// of each beam; and each beam against a sequence that was told to say what it says.
#include "carousel/beam_search.h"

#include <gtest/gtest.h>

#include <algorithm>
#include <cmath>
#include <map>
#include <memory>
#include <set>
#include <tuple>
#include <vector>

#include "carousel/error.h"
#include "carousel/single_sequence_engine.h"
#include "engine/best_answers.h"
#include "engine/logits.h"
#include "engine/next_words.h"
#include "engine/tiny_model.h"
#include "eviction/registry.h"
#include "testing/failing_model.h"
#include "testing/random_cases.h"
#include "testing/random_draws.h"

namespace carousel {
namespace {

// Blocks leave often.
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
  if (Pick(generator, 0, 5) == 0) {
    config.eviction.reset();
    return config;
  }
  config.cache.key_type = kTypes[Pick(generator, 0, 3)];
  config.cache.value_type = kTypes[Pick(generator, 0, 3)];
  if (config.cache.key_type == KvType::kInt4 || config.cache.value_type == KvType::kInt4)
    config.cache.block_size = 16;
  EvictionConfig& eviction = *config.eviction;
  const auto policies = RegisteredPolicies();
  eviction.start_size = 16;
  eviction.max_cache_size = 64;
  eviction.policy =
      policies[static_cast<std::size_t>(Pick(generator, 0, std::ssize(policies) - 1))].name;
  eviction.grouping = Pick(generator, 0, 1) == 0 ? Grouping::kLayer : Grouping::kHead;
  eviction.rotation = Pick(generator, 0, 2) == 0 ? Rotation::kKeys : Rotation::kQuery;
  if (Pick(generator, 0, 3) == 0) eviction.prompt_eviction = PromptEviction::kAtEnd;
  if (eviction.rotation == Rotation::kQuery && Pick(generator, 0, 2) > 0)
    config.recall = {.blocks = 2, .chunk = Pick(generator, 1, 16), .every = Pick(generator, 1, 4)};
  return config;
}

TinyModelOptions RandomModel(Generator* generator) {
  TinyModelOptions options{.seed = static_cast<std::uint64_t>(Pick(generator, 0, 1 << 20))};
  options.end_tokens = Tokens(generator, Pick(generator, 1, 6));
  return options;
}

BeamParams RandomParams(Generator* generator) {
  constexpr double kLengthPenalties[] = {-1.0, 0.0, 0.5, 1.0, 2.0};
  BeamParams params{.num_beams = Pick(generator, 1, 5)};
  do {
    params.num_beam_groups = Pick(generator, 1, params.num_beams);
  } while (params.num_beams % params.num_beam_groups != 0);
  if (params.num_beam_groups > 1) params.diversity_penalty = Pick(generator, 0, 1) == 0 ? 0.3 : 2.5;
  params.length_penalty = kLengthPenalties[Pick(generator, 0, 4)];
  params.num_return_sequences = Pick(generator, 1, params.num_beams);
  params.no_repeat_ngram_size = Pick(generator, 0, 4);
  params.stop_criteria = static_cast<StopCriteria>(Pick(generator, 0, 2));
  return params;
}

Request RandomRequest(Generator* generator, std::int64_t longest_prompt) {
  return {.prompt = Tokens(generator, Pick(generator, 1, longest_prompt)),
          .max_new_tokens = Pick(generator, 1, 14),
          .ignore_end_tokens = Pick(generator, 0, 4) == 0,
          .stop_tokens = Tokens(generator, Pick(generator, 0, 2))};
}

std::unique_ptr<Model> Tiny(const TinyModelOptions& options) {
  return std::make_unique<TinyModel>(options);
}

std::vector<BeamAnswer> Search(Engine* engine, const Request& request, const BeamParams& params) {
  return SearchBeams(engine, engine->Open(), request, params);
}

void ExpectNothingIsLeft(const Engine& engine) {
  EXPECT_EQ(engine.metrics().sequences, 0);
  EXPECT_EQ(engine.metrics().cache_bytes, 0);
  EXPECT_FALSE(engine.HasWork());
}

// --- The slow twin -------------------------------------------------------------------------------

// What a fresh sequence does that reads the prompt and is told what to say.
std::vector<StepResult> Forced(SingleSequenceEngine* engine, const Request& request,
                               const std::vector<TokenId>& answer) {
  engine->Reset();
  engine->Submit({.prompt = request.prompt, .forced_answer = answer, .keep_logits = true});
  std::vector<StepResult> said;
  while (engine->HasWork()) {
    if (StepResult step = engine->Step(); step.sampled) said.push_back(std::move(step));
  }
  return said;
}

class NaiveSearch {
 public:
  NaiveSearch(SingleSequenceEngine* engine, const Request& request, const BeamParams& params)
      : engine_(*engine), request_(request), params_(params) {
    ends_.insert(request.stop_tokens.begin(), request.stop_tokens.end());
    const auto& own = engine->model().spec().end_tokens;
    if (!request.ignore_end_tokens) ends_.insert(own.begin(), own.end());
    groups_.resize(static_cast<std::size_t>(params.num_beam_groups));
  }

  std::vector<BeamAnswer> Run() {
    for (std::int64_t length = 1; length <= request_.max_new_tokens; ++length) {
      std::vector<TokenId> chosen;
      for (Group& group : groups_) {
        if (!group.done) Advance(&group, length, &chosen);
      }
    }
    std::vector<BeamAnswer> all;
    for (const Group& group : groups_)
      all.insert(all.end(), group.ended.begin(), group.ended.end());
    SortByScore(&all);
    all.resize(std::min(all.size(), static_cast<std::size_t>(params_.num_return_sequences)));
    return all;
  }

 private:
  struct Group {
    std::vector<BeamAnswer> running = std::vector<BeamAnswer>(1);
    std::vector<BeamAnswer> ended;
    bool done = false;
  };
  struct Extension {
    double sum;
    std::size_t beam;
    TokenId word;
  };

  static void SortByScore(std::vector<BeamAnswer>* answers) {
    std::stable_sort(
        answers->begin(), answers->end(),
        [](const BeamAnswer& left, const BeamAnswer& right) { return left.score > right.score; });
  }

  double Score(double sum, std::int64_t length) const {
    return sum / std::pow(static_cast<double>(length), params_.length_penalty);
  }

  // Whether the last tokens of all that there would be have been there before.
  bool Repeats(const BeamAnswer& beam, TokenId word) const {
    const std::int64_t size = params_.no_repeat_ngram_size;
    std::vector<TokenId> all = request_.prompt;
    all.insert(all.end(), beam.tokens.begin(), beam.tokens.end());
    all.push_back(word);
    if (size == 0 || std::ssize(all) <= size) return false;
    const auto last = std::search(all.begin(), all.end(), all.end() - size, all.end());
    return last != all.end() - size;
  }

  std::vector<Extension> Extensions(const Group& group, const std::vector<TokenId>& chosen) {
    std::vector<Extension> all;
    for (std::size_t beam = 0; beam < group.running.size(); ++beam) {
      std::vector<TokenId> answer = group.running[beam].tokens;
      answer.push_back(0);
      const std::vector<float> logits = Forced(&engine_, request_, answer).back().logits;
      for (TokenId word = 0; word < std::ssize(logits); ++word) {
        if (Repeats(group.running[beam], word)) continue;
        const double logprob = logits[static_cast<std::size_t>(word)] - LogSumExp(logits);
        const auto times = std::count(chosen.begin(), chosen.end(), word);
        all.push_back({group.running[beam].sum + logprob -
                           params_.diversity_penalty * static_cast<double>(times),
                       beam, word});
      }
    }
    std::sort(all.begin(), all.end(), [](const Extension& left, const Extension& right) {
      return std::tuple(-left.sum, left.beam, left.word) <
             std::tuple(-right.sum, right.beam, right.word);
    });
    return all;
  }

  void EndWith(Group* group, BeamAnswer answer, FinishReason reason) const {
    answer.finish_reason = reason;
    answer.score = Score(answer.sum, std::ssize(answer.tokens));
    group->ended.push_back(std::move(answer));
    SortByScore(&group->ended);
    if (std::ssize(group->ended) > width()) group->ended.pop_back();
  }

  bool IsDone(const Group& group, double best_sum, std::int64_t length) const {
    if (std::ssize(group.ended) < width()) return false;
    if (params_.num_beams == 1 || params_.stop_criteria == StopCriteria::kEarly) return true;
    if (params_.stop_criteria == StopCriteria::kNever && params_.length_penalty > 0)
      length = request_.max_new_tokens;
    return group.ended.back().score >= Score(best_sum, length);
  }

  void Advance(Group* group, std::int64_t length, std::vector<TokenId>* chosen) {
    std::vector<BeamAnswer> next;
    const std::vector<Extension> extensions = Extensions(*group, *chosen);
    for (std::size_t rank = 0; rank < extensions.size() && std::ssize(next) < width(); ++rank) {
      BeamAnswer answer = group->running[extensions[rank].beam];
      answer.tokens.push_back(extensions[rank].word);
      answer.sum = extensions[rank].sum;
      if (!ends_.contains(extensions[rank].word)) {
        chosen->push_back(extensions[rank].word);
        next.push_back(std::move(answer));
      } else if (static_cast<std::int64_t>(rank) < width()) {
        EndWith(group, std::move(answer), FinishReason::kStop);
      }
    }
    group->running = next;
    group->done = next.empty() || IsDone(*group, next.front().sum, length);
    if (group->done || length < request_.max_new_tokens) return;
    for (const BeamAnswer& answer : next) EndWith(group, answer, FinishReason::kLength);
  }

  std::int64_t width() const { return params_.num_beams / params_.num_beam_groups; }

  SingleSequenceEngine& engine_;
  const Request& request_;
  const BeamParams& params_;
  std::set<TokenId> ends_;
  std::vector<Group> groups_;
};

void ExpectSame(const std::vector<BeamAnswer>& answers, const std::vector<BeamAnswer>& expected) {
  ASSERT_EQ(answers.size(), expected.size());
  for (std::size_t i = 0; i < answers.size(); ++i) {
    ASSERT_EQ(answers[i].tokens, expected[i].tokens) << i;
    ASSERT_EQ(answers[i].finish_reason, expected[i].finish_reason) << i;
    ASSERT_NEAR(answers[i].score, expected[i].score, 1e-9) << i;
    ASSERT_NEAR(answers[i].sum, expected[i].sum, 1e-9) << i;
  }
}

TEST(BeamSearch, FindsWhatTheNaiveSearchFinds) {
  Generator generator(41);
  std::int64_t stopped = 0;
  std::int64_t of_full_length = 0;
  for (int scenario = 0; scenario < RandomCases(150); ++scenario) {
    SCOPED_TRACE(scenario);
    const EngineConfig config = RandomConfig(&generator);
    const TinyModelOptions options = RandomModel(&generator);
    const BeamParams params = RandomParams(&generator);
    const Request request = RandomRequest(&generator, 100);
    const auto engine = Engine::Create(Tiny(options), config);
    const auto alone = SingleSequenceEngine::Create(Tiny(options), config);
    const std::vector<BeamAnswer> answers = Search(engine.get(), request, params);
    ExpectSame(answers, NaiveSearch(alone.get(), request, params).Run());
    if (::testing::Test::HasFailure()) return;
    for (const BeamAnswer& answer : answers)
      ++(answer.finish_reason == FinishReason::kStop ? stopped : of_full_length);
    ExpectNothingIsLeft(*engine);
  }
  EXPECT_GT(stopped, 0);
  EXPECT_GT(of_full_length, 0);
}

// --- Each beam, by itself ------------------------------------------------------------------------

// Long enough that blocks leave, and come back, while the beams part and die.
TEST(BeamSearch, ABeamForgetsAsASequenceAloneDoes) {
  Generator generator(43);
  std::int64_t evicted = 0;
  std::int64_t recalled = 0;
  for (int scenario = 0; scenario < std::max(RandomCases(40), 8); ++scenario) {
    SCOPED_TRACE(scenario);
    const EngineConfig config = RandomConfig(&generator);
    const TinyModelOptions options = RandomModel(&generator);
    BeamParams params = RandomParams(&generator);
    params.num_return_sequences = params.num_beams;
    Request request = RandomRequest(&generator, 100);
    request.max_new_tokens = Pick(&generator, 40, 90);
    request.ignore_end_tokens = true;
    request.stop_tokens.clear();
    const auto engine = Engine::Create(Tiny(options), config);
    const auto alone = SingleSequenceEngine::Create(Tiny(options), config);
    for (const BeamAnswer& answer : Search(engine.get(), request, params)) {
      double sum = 0.0;
      double forced_sum = 0.0;
      const std::vector<StepResult> forced = Forced(alone.get(), request, answer.tokens);
      ASSERT_EQ(forced.size(), answer.tokens.size());
      for (std::size_t i = 0; i < forced.size(); ++i) {
        EXPECT_NEAR(forced[i].sampled->logprob, answer.logprobs[i], 1e-5) << i;
        sum += static_cast<double>(answer.logprobs[i]);
        forced_sum += static_cast<double>(forced[i].sampled->logprob);
      }
      EXPECT_NEAR(sum, forced_sum, 1e-4);
      if (params.diversity_penalty == 0.0) {
        EXPECT_NEAR(answer.sum, forced_sum, 1e-4);
      }
      evicted += alone->metrics().evicted_tokens;
      recalled += alone->metrics().recalled_blocks;
    }
    if (::testing::Test::HasFailure()) return;
    ExpectNothingIsLeft(*engine);
  }
  EXPECT_GT(evicted, 0);
  EXPECT_GT(recalled, 0);
}

TEST(BeamSearch, OneBeamIsGreedy) {
  Generator generator(45);
  for (int scenario = 0; scenario < RandomCases(60); ++scenario) {
    SCOPED_TRACE(scenario);
    const EngineConfig config = RandomConfig(&generator);
    const TinyModelOptions options = RandomModel(&generator);
    Request request = RandomRequest(&generator, 100);
    request.max_new_tokens = Pick(&generator, 1, 60);
    const BeamParams params{.length_penalty = 2.0,
                            .stop_criteria = static_cast<StopCriteria>(Pick(&generator, 0, 2))};
    const auto engine = Engine::Create(Tiny(options), config);
    const std::vector<BeamAnswer> answers = Search(engine.get(), request, params);
    ASSERT_EQ(answers.size(), std::size_t{1});

    const auto alone = SingleSequenceEngine::Create(Tiny(options), config);
    alone->Submit(request);
    std::vector<TokenId> greedy;
    FinishReason reason = FinishReason::kNone;
    while (alone->HasWork()) {
      const StepResult step = alone->Step();
      if (step.sampled) greedy.push_back(step.sampled->token);
      reason = step.finish_reason;
    }
    ASSERT_EQ(answers[0].tokens, greedy);
    ASSERT_EQ(answers[0].finish_reason, reason);
  }
}

// An answer that is read as one is what it is when it is forced.
TEST(BeamSearch, AnAnswerThatIsGivenIsReadAsOneThatIsForced) {
  Generator generator(47);
  for (int scenario = 0; scenario < std::max(RandomCases(40), 8); ++scenario) {
    SCOPED_TRACE(scenario);
    const EngineConfig config = RandomConfig(&generator);
    const auto alone = SingleSequenceEngine::Create(Tiny({}), config);
    const Request request{.prompt = Tokens(&generator, Pick(&generator, 1, 100))};
    const std::vector<TokenId> answer = Tokens(&generator, Pick(&generator, 2, 60));
    const std::vector<StepResult> forced = Forced(alone.get(), request, answer);
    alone->Reset();
    alone->Submit(request);
    while (alone->HasWork()) alone->Step();
    alone->Submit({.prompt = {answer.begin(), answer.end() - 1},
                   .is_answer = true,
                   .max_new_tokens = 1,
                   .keep_logits = true});
    std::vector<float> logits;
    std::int64_t steps = 0;
    while (alone->HasWork()) {
      logits = alone->Step().logits;
      ++steps;
    }
    EXPECT_EQ(steps, std::ssize(answer) - 1);
    ASSERT_EQ(logits, forced.back().logits);
  }
  const auto alone = SingleSequenceEngine::Create(Tiny({}), SmallConfig());
  EXPECT_THROW(alone->Submit({.prompt = {1}, .is_answer = true, .score_prompt = true}), Error);
}

// --- The engine ----------------------------------------------------------------------------------

TEST(BeamSearch, AllBeamsMoveInOneStep) {
  Generator generator(49);
  const auto engine = Engine::Create(Tiny({}), SmallConfig());
  const Request request{
      .prompt = Tokens(&generator, 40), .max_new_tokens = 30, .ignore_end_tokens = true};
  EXPECT_EQ(Search(engine.get(), request, {.num_beams = 4}).size(), std::size_t{1});
  // Three chunks of the prompt; the last word of an answer is not read.
  EXPECT_EQ(engine->metrics().steps, 3 + 29);
  EXPECT_EQ(engine->metrics().rows, 40 + 4 * 29);
}

// Where fewer may run than there are beams, a step of the search takes several of the engine's.
TEST(BeamSearch, WaitsForItsTurn) {
  Generator generator(51);
  const Request request{.prompt = Tokens(&generator, 60), .max_new_tokens = 40};
  const BeamParams params{.num_beams = 5, .num_return_sequences = 5};
  const auto wide = Engine::Create(Tiny({}), SmallConfig());
  EngineConfig config = SmallConfig();
  config.scheduler.max_running = 2;
  const auto narrow = Engine::Create(Tiny({}), config);
  ExpectSame(Search(narrow.get(), request, params), Search(wide.get(), request, params));
  EXPECT_GT(narrow->metrics().steps, 2 * wide->metrics().steps);
}

// Two searches and an answer that guesses ahead in one engine.
TEST(BeamSearch, RunsBesideOthers) {
  Generator generator(53);
  const EngineConfig config = SmallConfig();
  const std::vector<Request> requests = {{.prompt = Tokens(&generator, 70), .max_new_tokens = 30},
                                         {.prompt = Tokens(&generator, 20), .max_new_tokens = 50}};
  const BeamParams params{.num_beams = 3, .num_return_sequences = 3};
  const auto engine = Engine::Create(Tiny({}), config);
  const SequenceId other = engine->Open();
  engine->Submit(other, {.prompt = std::vector<TokenId>(30, 7),
                         .max_new_tokens = 60,
                         .ignore_end_tokens = true,
                         .sampling = {.max_draft_tokens = 4, .draft_ngram = 1}});
  std::vector<std::unique_ptr<BeamSearch>> searches;
  for (const Request& request : requests)
    searches.push_back(BeamSearch::Start(engine.get(), engine->Open(), request, params));
  std::int64_t said = 0;
  while (engine->HasWork()) {
    for (StepOutput& output : engine->Step()) {
      if (output.sequence == other && output.result.sampled) ++said;
      for (const auto& search : searches) {
        if (search->IsOf(output.sequence)) search->Take(std::move(output));
      }
    }
  }
  EXPECT_EQ(said, 60);
  EXPECT_GT(engine->metrics(other).drafted_tokens, 0);
  for (std::size_t i = 0; i < requests.size(); ++i) {
    const auto alone = Engine::Create(Tiny({}), config);
    ExpectSame(searches[i]->answers(), Search(alone.get(), requests[i], params));
    EXPECT_GT(searches[i]->metrics().evicted_tokens, 0);
  }
  engine->Close(other);
  ExpectNothingIsLeft(*engine);
}

TEST(BeamSearch, AStepThatFailsEndsTheSearchAlone) {
  Generator generator(55);
  Failure failure;
  const auto engine =
      Engine::Create(std::make_unique<FailingModel>(Tiny({}), &failure), SmallConfig());
  const Request request{.prompt = Tokens(&generator, 50), .max_new_tokens = 20};
  const BeamParams params{.num_beams = 4};
  const std::vector<BeamAnswer> expected = Search(engine.get(), request, params);
  for (int fails_at = 0; fails_at < 20; ++fails_at) {
    const auto search = BeamSearch::Start(engine.get(), engine->Open(), request, params);
    const auto run = [&] {
      for (int step = 0; search->HasWork(); ++step) {
        failure.layer = step == fails_at ? std::optional<std::int64_t>(1) : std::nullopt;
        for (StepOutput& output : engine->Step()) {
          if (search->IsOf(output.sequence)) search->Take(std::move(output));
        }
      }
    };
    EXPECT_THROW(run(), Error);
    failure.layer.reset();
    EXPECT_FALSE(search->HasWork());
    EXPECT_TRUE(search->answers().empty());
    ExpectNothingIsLeft(*engine);
  }
  ExpectSame(Search(engine.get(), request, params), expected);
}

TEST(BeamSearch, IsCancelledBetweenSteps) {
  Generator generator(57);
  const auto engine = Engine::Create(Tiny({}), SmallConfig());
  const Request request{
      .prompt = Tokens(&generator, 50), .max_new_tokens = 100, .ignore_end_tokens = true};
  for (int steps = 0; steps < 12; ++steps) {
    const auto search = BeamSearch::Start(engine.get(), engine->Open(), request,
                                          {.num_beams = 3, .num_return_sequences = 3});
    for (int step = 0; step < steps; ++step) {
      for (StepOutput& output : engine->Step()) search->Take(std::move(output));
    }
    search->Cancel();
    EXPECT_FALSE(search->HasWork());
    // Four chunks of the prompt; the step that reads the last one gives the first words.
    EXPECT_EQ(search->answers().size(), steps < 4 ? std::size_t{0} : std::size_t{3});
    for (const BeamAnswer& answer : search->answers()) {
      EXPECT_EQ(std::ssize(answer.tokens), steps - 3);
      EXPECT_EQ(answer.finish_reason, FinishReason::kCancelled);
    }
    ExpectNothingIsLeft(*engine);
  }
  // One that is dropped half-way gives everything back.
  {
    const auto search = BeamSearch::Start(engine.get(), engine->Open(), request, {.num_beams = 3});
    for (int step = 0; step < 8; ++step) {
      for (StepOutput& output : engine->Step()) search->Take(std::move(output));
    }
    EXPECT_EQ(engine->metrics().sequences, 3);
  }
  ExpectNothingIsLeft(*engine);
}

TEST(BeamSearch, ADeadlineEndsItWithWhatThereIs) {
  const auto engine = Engine::Create(Tiny({}), SmallConfig());
  Request request{.prompt = {1, 2, 3}, .max_new_tokens = 1'000'000, .ignore_end_tokens = true};
  request.deadline = std::chrono::steady_clock::now() + std::chrono::milliseconds(200);
  const std::vector<BeamAnswer> answers = Search(engine.get(), request, {.num_beams = 2});
  ASSERT_EQ(answers.size(), std::size_t{1});
  EXPECT_EQ(answers[0].finish_reason, FinishReason::kExpired);
  ExpectNothingIsLeft(*engine);
}

// Where the pools are spent, beams wait for one another or the search is refused; never anything
// else.
TEST(BeamSearch, TakesTurnsWhereMemoryIsShort) {
  Generator generator(59);
  const Request request{.prompt = Tokens(&generator, 60), .max_new_tokens = 40};
  const BeamParams params{.num_beams = 5, .num_return_sequences = 5};
  const auto unlimited = Engine::Create(Tiny({}), SmallConfig());
  const std::vector<BeamAnswer> expected = Search(unlimited.get(), request, params);
  std::int64_t preemptions = 0;
  for (std::int64_t limit = 72; limit <= 520; limit += 16) {
    SCOPED_TRACE(limit);
    EngineConfig config = SmallConfig();
    config.cache.limit_tokens = limit;
    const auto engine = Engine::Create(Tiny({}), config);
    ExpectSame(Search(engine.get(), request, params), expected);
    preemptions += engine->metrics().preemptions;
    ExpectNothingIsLeft(*engine);
    EXPECT_EQ(Search(engine.get(), request, {}).size(), std::size_t{1});
  }
  EXPECT_GT(preemptions, 0);
}

// --- What is refused -----------------------------------------------------------------------------

std::string FieldRefused(const Request& request, const BeamParams& params,
                         const SchedulerConfig& scheduler = {}) {
  EngineConfig config = SmallConfig();
  config.scheduler = scheduler;
  const auto engine = Engine::Create(Tiny({}), config);
  const SequenceId sequence = engine->Open();
  try {
    BeamSearch::Start(engine.get(), sequence, request, params);
  } catch (const Error& error) {
    EXPECT_EQ(error.code(), ErrorCode::kInvalidArgument);
    // As it was.
    engine->Submit(sequence, {.prompt = {1}});
    return error.field();
  }
  return "";
}

TEST(BeamSearch, RefusesWhatHasNoPlaceInIt) {
  const Request good{.prompt = {1, 2}, .max_new_tokens = 4};
  EXPECT_EQ(FieldRefused(good, {}), "");
  EXPECT_EQ(FieldRefused(good, {.num_beams = 0}), "num_beams");
  EXPECT_EQ(FieldRefused(good, {.num_beams = 129}), "num_beams");
  EXPECT_EQ(FieldRefused(good, {.num_beams = 4, .num_beam_groups = 3, .diversity_penalty = 1.0}),
            "num_beam_groups");
  EXPECT_EQ(FieldRefused(good, {.num_beams = 2, .num_beam_groups = 4, .diversity_penalty = 1.0}),
            "num_beam_groups");
  EXPECT_EQ(FieldRefused(good, {.num_beams = 4, .num_beam_groups = 2}), "diversity_penalty");
  EXPECT_EQ(FieldRefused(good, {.num_beams = 2, .num_return_sequences = 3}),
            "num_return_sequences");
  EXPECT_EQ(FieldRefused(good, {.num_beams = 4}, {.max_running = 1, .max_waiting = 2}),
            "num_beams");

  const auto refused = [&](auto spoil) {
    Request request = good;
    spoil(&request);
    return FieldRefused(request, {.num_beams = 2});
  };
  EXPECT_EQ(refused([](Request* r) { r->prompt.clear(); }), "prompt");
  EXPECT_EQ(refused([](Request* r) { r->prompt = {61}; }), "prompt");
  EXPECT_EQ(refused([](Request* r) { r->stop_tokens = {-1}; }), "stop_tokens");
  EXPECT_EQ(refused([](Request* r) { r->max_new_tokens = 0; }), "max_new_tokens");
  EXPECT_EQ(refused([](Request* r) { r->sampling.temperature = 0.5; }), "temperature");
  EXPECT_EQ(refused([](Request* r) { r->sampling.repetition_penalty = 1.1; }),
            "repetition_penalty");
  EXPECT_EQ(refused([](Request* r) { r->sampling.presence_penalty = 1.0; }), "presence_penalty");
  EXPECT_EQ(refused([](Request* r) { r->sampling.frequency_penalty = 1.0; }), "frequency_penalty");
  EXPECT_EQ(refused([](Request* r) { r->sampling.logprobs = 2; }), "logprobs");
  EXPECT_EQ(refused([](Request* r) { r->sampling.top_p = 2.0; }), "top_p");
  EXPECT_EQ(refused([](Request* r) { r->forced_answer = {1}; }), "forced_answer");
  EXPECT_EQ(refused([](Request* r) { r->stop_after = [](TokenId) { return false; }; }),
            "stop_after");
  EXPECT_EQ(refused([](Request* r) { r->sampling.max_draft_tokens = 4; }), "max_draft_tokens");
  EXPECT_EQ(refused([](Request* r) { r->score_prompt = true; }), "score_prompt");
  EXPECT_EQ(refused([](Request* r) { r->keep_logits = true; }), "keep_logits");
}

// --- Parts of it ---------------------------------------------------------------------------------

TEST(AddRepeats, FindsWhatWouldEndARunThatHasBeen) {
  const auto repeats = [](std::vector<TokenId> prompt, std::vector<TokenId> answer,
                          std::int64_t size) {
    std::set<TokenId> banned;
    AddRepeats(prompt, answer, size, &banned);
    return banned;
  };
  using Banned = std::set<TokenId>;
  EXPECT_EQ(repeats({1, 2, 3, 1}, {2}, 3), Banned{3});
  EXPECT_EQ(repeats({1, 2, 3}, {1, 2, 4, 1, 2}, 3), (Banned{3, 4}));
  EXPECT_EQ(repeats({1, 1}, {1}, 3), Banned{1});
  EXPECT_EQ(repeats({1, 2, 3}, {}, 2), Banned{});
  EXPECT_EQ(repeats({1, 2}, {3}, 1), (Banned{1, 2, 3}));
  EXPECT_EQ(repeats({1}, {}, 5), Banned{});
}

// Nothing is left that may follow: what there is comes back, and nothing is stuck.
TEST(BeamSearch, EndsWhereNothingMayFollow) {
  const auto engine = Engine::Create(Tiny({}), SmallConfig());
  Request request{.prompt = {}, .max_new_tokens = 50, .ignore_end_tokens = true};
  for (TokenId token = 0; token < 61; ++token) request.prompt.push_back(token);
  EXPECT_TRUE(Search(engine.get(), request, {.num_beams = 3, .no_repeat_ngram_size = 1}).empty());
  request.stop_tokens = {60};
  request.prompt.pop_back();
  const std::vector<BeamAnswer> answers =
      Search(engine.get(), request,
             {.num_beams = 3, .num_return_sequences = 3, .no_repeat_ngram_size = 1});
  ASSERT_EQ(answers.size(), std::size_t{1});
  EXPECT_EQ(answers[0].tokens, std::vector<TokenId>{60});
  ExpectNothingIsLeft(*engine);
}

BeamAnswer Of(double sum, std::int64_t tokens) {
  return {.tokens = std::vector<TokenId>(static_cast<std::size_t>(tokens), 1), .sum = sum};
}

TEST(BestAnswers, AreRankedByLength) {
  BestAnswers best({.num_beams = 2, .length_penalty = 1.0}, 10);
  best.Add(Of(-4.0, 2));
  best.Add(Of(-4.0, 4));
  best.Add(Of(-9.0, 3));
  ASSERT_EQ(best.answers().size(), std::size_t{2});
  EXPECT_EQ(best.answers()[0].score, -1.0);
  EXPECT_EQ(best.answers()[1].score, -2.0);
}

TEST(BestAnswers, AreEnoughByTheCriterion) {
  const auto are_enough = [](StopCriteria criteria, double length_penalty, double sum) {
    BestAnswers best({.num_beams = 2, .length_penalty = length_penalty, .stop_criteria = criteria},
                     10);
    best.Add(Of(-4.0, 2));
    EXPECT_FALSE(best.AreEnough(-1000.0, 2));  // of one answer only
    best.Add(Of(-4.0, 2));
    return best.AreEnough(sum, 2);
  };
  EXPECT_TRUE(are_enough(StopCriteria::kEarly, 1.0, -0.1));
  EXPECT_FALSE(are_enough(StopCriteria::kHeuristic, 1.0, -3.9));
  EXPECT_TRUE(are_enough(StopCriteria::kHeuristic, 1.0, -4.1));
  // -19 over 10 tokens would still be better than -2.
  EXPECT_FALSE(are_enough(StopCriteria::kNever, 1.0, -19.0));
  EXPECT_TRUE(are_enough(StopCriteria::kNever, 1.0, -20.0));
  EXPECT_FALSE(are_enough(StopCriteria::kNever, -1.0, -3.9));
  EXPECT_TRUE(are_enough(StopCriteria::kNever, -1.0, -4.1));
}

}  // namespace
}  // namespace carousel
