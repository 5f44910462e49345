// SPDX-License-Identifier: Apache-2.0
// Many sequences in one engine, each against itself alone: same words, same logits, bit for bit on
// a model that computes each row by itself, and on one that does not with batch_invariant.
#include <gtest/gtest.h>

#include <map>
#include <memory>
#include <optional>
#include <string>
#include <thread>
#include <vector>

#include "carousel/engine.h"
#include "carousel/error.h"
#include "carousel/single_sequence_engine.h"
#include "engine/tiny_model.h"
#include "eviction/registry.h"
#include "testing/crowded_model.h"
#include "testing/failing_model.h"
#include "testing/random_cases.h"
#include "testing/random_draws.h"

namespace carousel {
namespace {

EngineConfig SmallConfig() {
  EngineConfig config;
  config.cache.block_size = 8;
  config.chunk_size = 16;
  config.eviction = EvictionConfig{.start_size = 8, .recent_size = 16, .max_cache_size = 48};
  config.scheduler = {.max_running = 6};
  return config;
}

// A sequence's own settings. Its chunk is at most the engine's.
EngineConfig RandomConfig(Generator* generator) {
  constexpr KvType kTypes[] = {KvType::kF32, KvType::kF16, KvType::kInt8, KvType::kInt4};
  EngineConfig config = SmallConfig();
  if (Pick(generator, 0, 4) == 0) {
    config.eviction.reset();
    return config;
  }
  config.cache.key_type = kTypes[Pick(generator, 0, 3)];
  config.cache.value_type = kTypes[Pick(generator, 0, 3)];
  if (config.cache.key_type == KvType::kInt4 || config.cache.value_type == KvType::kInt4)
    config.cache.block_size = 16;
  config.chunk_size = 16;
  EvictionConfig& eviction = *config.eviction;
  const auto policies = RegisteredPolicies();
  eviction.start_size = 16;
  eviction.max_cache_size = 64;
  eviction.policy =
      policies[static_cast<std::size_t>(Pick(generator, 0, std::ssize(policies) - 1))].name;
  eviction.grouping = Pick(generator, 0, 1) == 0 ? Grouping::kLayer : Grouping::kHead;
  eviction.rotation = Pick(generator, 0, 2) == 0 ? Rotation::kKeys : Rotation::kQuery;
  if (eviction.rotation == Rotation::kQuery && Pick(generator, 0, 2) > 0)
    config.recall = {.blocks = 2, .chunk = Pick(generator, 1, 16), .every = Pick(generator, 1, 4)};
  return config;
}

Request RandomRequest(Generator* generator) {
  Request request{.prompt = Tokens(generator, Pick(generator, 1, 120)),
                  .max_new_tokens = Pick(generator, 0, 24),
                  .ignore_end_tokens = true,
                  .score_prompt = Pick(generator, 0, 2) == 0};
  request.keep_logits = true;
  if (Pick(generator, 0, 1) == 0) {
    request.sampling = {.temperature = 1.0,
                        .top_p = 0.9,
                        .repetition_penalty = 1.2,
                        .seed = static_cast<std::uint64_t>(Pick(generator, 0, 1000))};
  }
  return request;
}

// What a step says, and how its sequence stands after it.
std::vector<double> Numbers(const StepResult& step, const SequenceMetrics& metrics) {
  std::vector<double> numbers(step.negative_log_likelihood);
  if (step.sampled) numbers.push_back(step.sampled->token);
  numbers.insert(numbers.end(), step.logits.begin(), step.logits.end());
  for (const std::int64_t count :
       {step.tokens_processed, step.evicted_tokens, static_cast<std::int64_t>(step.finish_reason),
        metrics.logical_tokens, metrics.resident_tokens, metrics.evicted_tokens,
        metrics.cache_bytes, metrics.recall_stored_tokens, metrics.recalled_blocks,
        metrics.promoted_blocks}) {
    numbers.push_back(static_cast<double>(count));
  }
  return numbers;
}

// A sequence among others, and its twin that is alone.
struct Pair {
  SequenceId sequence;
  std::unique_ptr<SingleSequenceEngine> alone;
  RequestId request;
  // Its last step: what that evicted was due before it (decision 20), and stays evicted.
  bool has_failed = false;
};

// Computes each row by itself; or rounds by the number of a pass's rows, as real ones do.
std::unique_ptr<Model> SmallModel(bool rounds) {
  auto tiny = std::make_unique<TinyModel>(TinyModelOptions{});
  if (!rounds) return tiny;
  return std::make_unique<CrowdedModel>(std::move(tiny), Crowding::kByCount);
}

class ManySequences {
 public:
  // batch_invariant, with a model that needs it.
  ManySequences(Generator* generator, std::int64_t pairs, bool batch_invariant)
      : generator_(generator), batch_invariant_(batch_invariant) {
    EngineConfig config = SmallConfig();
    config.scheduler.batch_invariant = batch_invariant;
    engine_ = Engine::Create(std::make_unique<FailingModel>(SmallModel(batch_invariant), &failure_),
                             config);
    for (std::int64_t i = 0; i < pairs; ++i) {
      config = RandomConfig(generator);
      config.scheduler.batch_invariant = batch_invariant;
      pairs_.push_back({.sequence = engine_->Open(config),
                        .alone = SingleSequenceEngine::Create(SmallModel(batch_invariant), config),
                        .request = {},
                        .has_failed = false});
    }
  }

  void Act() {
    Pair& pair = pairs_[static_cast<std::size_t>(Pick(generator_, 0, std::ssize(pairs_) - 1))];
    if (!pair.alone->HasWork()) {
      if (Pick(generator_, 0, 9) == 0) {
        engine_->Reset(pair.sequence);
        pair.alone->Reset();
      }
      const Request request = RandomRequest(generator_);
      pair.request = engine_->Submit(pair.sequence, request);
      pair.alone->Submit(request);
    } else if (!pair.has_failed && Pick(generator_, 0, 19) == 0) {
      engine_->Cancel(pair.request);
      pair.alone->Cancel();
    }
    if (Pick(generator_, 0, 4) == 0) {
      failure_.layer = Pick(generator_, 0, 1);
      // Of several passes, those of prompts alone.
      if (batch_invariant_ && Pick(generator_, 0, 1) == 0) failure_.least_tokens = 9;
      Step();
      failure_ = {};
    }
    Step();
  }

  void FinishAll() {
    while (engine_->HasWork()) Step();
    std::int64_t recalled = 0;
    std::int64_t promoted = 0;
    for (const Pair& pair : pairs_) {
      recalled += pair.alone->metrics().recalled_blocks;
      promoted += pair.alone->metrics().promoted_blocks;
    }
    EXPECT_EQ(engine_->metrics().recalled_blocks, recalled);
    EXPECT_EQ(engine_->metrics().promoted_blocks, promoted);
    for (const Pair& pair : pairs_) engine_->Close(pair.sequence);
    EXPECT_EQ(engine_->metrics().cache_bytes, 0);
    EXPECT_EQ(engine_->metrics().sequences, 0);
    EXPECT_GT(most_at_once_, 2);
    EXPECT_GT(failures_, 0);
  }

 private:
  Pair& PairOf(SequenceId sequence) {
    for (Pair& pair : pairs_) {
      if (pair.sequence == sequence) return pair;
    }
    ADD_FAILURE() << "an output of no sequence";
    return pairs_.front();
  }

  void Step() {
    if (!engine_->HasWork()) return;
    const std::vector<StepOutput> outputs = engine_->Step();
    most_at_once_ = std::max<std::int64_t>(most_at_once_, std::ssize(outputs));
    for (const StepOutput& output : outputs) {
      Pair& pair = PairOf(output.sequence);
      EXPECT_EQ(output.request, pair.request);
      pair.has_failed = output.failure != nullptr;
      if (output.failure) {
        ++failures_;
        continue;
      }
      const StepResult expected = pair.alone->Step();
      ASSERT_EQ(Numbers(output.result, engine_->metrics(output.sequence)),
                Numbers(expected, pair.alone->metrics()));
      ASSERT_EQ(engine_->HasWork(pair.sequence), pair.alone->HasWork());
    }
  }

  Generator* generator_;
  bool batch_invariant_;
  Failure failure_;
  std::unique_ptr<Engine> engine_;
  std::vector<Pair> pairs_;
  std::int64_t most_at_once_ = 0;
  std::int64_t failures_ = 0;
};

void PlayMany(std::uint64_t seed, std::int64_t pairs, bool batch_invariant) {
  Generator generator(seed);
  for (int scenario = 0; scenario < RandomCases(20); ++scenario) {
    SCOPED_TRACE(scenario);
    ManySequences many(&generator, pairs, batch_invariant);
    for (int act = 0; act < 200; ++act) {
      many.Act();
      if (::testing::Test::HasFailure()) return;
    }
    many.FinishAll();
  }
}

TEST(ManySequences, EachIsAsIfAlone) { PlayMany(11, 8, /*batch_invariant=*/false); }

// More than share a pass.
TEST(ManySequences, EachIsAsIfAloneWhereProductsRoundByTheirSize) {
  PlayMany(12, 14, /*batch_invariant=*/true);
}

// --- One engine ----------------------------------------------------------------------------------

std::unique_ptr<Engine> SmallEngine(const SchedulerConfig& scheduler = {.max_running = 6}) {
  EngineConfig config = SmallConfig();
  config.scheduler = scheduler;
  return Engine::Create(std::make_unique<TinyModel>(TinyModelOptions{}), config);
}

Request Asking(std::int64_t tokens, std::int64_t answer) {
  return {.prompt = std::vector<TokenId>(static_cast<std::size_t>(tokens), 7),
          .max_new_tokens = answer,
          .ignore_end_tokens = true};
}

TEST(Engine, AFullQueueIsAnAnswer) {
  const auto engine = SmallEngine({.max_running = 1, .max_waiting = 1});
  const SequenceId first = engine->Open();
  const SequenceId second = engine->Open();
  const SequenceId third = engine->Open();
  engine->Submit(first, Asking(4, 1));
  engine->Submit(second, Asking(4, 1));
  try {
    engine->Submit(third, Asking(4, 1));
    FAIL();
  } catch (const Error& error) {
    EXPECT_EQ(error.code(), ErrorCode::kBusy);
  }
  while (engine->HasWork()) engine->Step();
  EXPECT_NO_THROW(engine->Submit(third, Asking(4, 1)));
}

TEST(Engine, ALargerPriorityIsAdmittedFirst) {
  const auto engine = SmallEngine({.max_running = 1});
  const SequenceId running = engine->Open();
  const SequenceId low = engine->Open();
  const SequenceId high = engine->Open();
  engine->Submit(running, Asking(4, 3));
  engine->Step();
  engine->Submit(low, Asking(4, 1));
  Request urgent = Asking(4, 1);
  urgent.priority = 1;
  engine->Submit(high, urgent);
  std::vector<SequenceId> order;
  while (engine->HasWork()) {
    for (const StepOutput& output : engine->Step()) {
      if (output.result.finish_reason != FinishReason::kNone) order.push_back(output.sequence);
    }
  }
  EXPECT_EQ(order, (std::vector<SequenceId>{running, high, low}));
}

TEST(Engine, ARequestThatIsLateExpires) {
  const auto engine = SmallEngine();
  const SequenceId sequence = engine->Open();
  Request request = Asking(4, 10);
  request.deadline = std::chrono::steady_clock::now();
  engine->Submit(sequence, request);
  const auto outputs = engine->Step();
  ASSERT_EQ(outputs.size(), std::size_t{1});
  EXPECT_EQ(outputs[0].result.finish_reason, FinishReason::kExpired);
  EXPECT_FALSE(engine->HasWork());
}

TEST(Engine, WhoIsCancelledFromAnotherThreadEndsWithinAStep) {
  const auto engine = SmallEngine();
  const SequenceId sequence = engine->Open();
  const RequestId request = engine->Submit(sequence, Asking(4, 1000));
  engine->Step();
  std::thread([&] { engine->Cancel(request); }).join();
  const auto outputs = engine->Step();
  ASSERT_EQ(outputs.size(), std::size_t{1});
  EXPECT_EQ(outputs[0].result.finish_reason, FinishReason::kCancelled);
  EXPECT_FALSE(engine->HasWork());
  engine->Cancel(request);  // late, and nothing
  engine->Submit(sequence, Asking(4, 1));
  EXPECT_EQ(engine->Step()[0].result.finish_reason, FinishReason::kLength);
}

// One that the pools can never hold fails when all others have made room, and these go on.
TEST(Engine, OneThatIsTooLargeFailsAlone) {
  EngineConfig config = SmallConfig();
  config.cache.limit_tokens = 80;
  const auto engine = Engine::Create(std::make_unique<TinyModel>(TinyModelOptions{}), config);
  EngineConfig whole = config;
  whole.eviction.reset();
  const SequenceId greedy = engine->Open(whole);
  const SequenceId modest = engine->Open();
  const RequestId too_large = engine->Submit(greedy, Asking(200, 1));
  engine->Submit(modest, Asking(8, 5));
  std::int64_t failures = 0;
  std::int64_t said = 0;
  for (int step = 0; step < 20 && engine->HasWork(); ++step) {
    for (const StepOutput& output : engine->Step()) {
      if (output.failure) {
        EXPECT_EQ(output.request, too_large);
        if (++failures == 2) engine->Cancel(too_large);
      } else if (output.result.sampled) {
        EXPECT_EQ(output.sequence, modest);
        ++said;
      }
    }
  }
  EXPECT_EQ(failures, 2);
  EXPECT_EQ(said, 5);
  EXPECT_FALSE(engine->HasWork());
}

TEST(Engine, CountsWhatRequestsWaitFor) {
  const auto engine = SmallEngine({.max_running = 1});
  for (int i = 0; i < 3; ++i) engine->Submit(engine->Open(), Asking(40, 5));
  EXPECT_EQ(engine->metrics().queue_time.count(), 0);
  engine->Step();
  EXPECT_EQ(engine->metrics().queue_time.count(), 1);
  EXPECT_EQ(engine->metrics().requests_waiting, 2);
  while (engine->HasWork()) engine->Step();
  const EngineMetrics metrics = engine->metrics();
  EXPECT_EQ(metrics.queue_time.count(), 3);
  EXPECT_EQ(metrics.time_to_first_token.count(), 3);
  EXPECT_EQ(metrics.time_per_output_token.count(), 12);
  EXPECT_GE(metrics.time_to_first_token.sum, metrics.queue_time.sum);
  EXPECT_EQ(metrics.rows, 3 * 44);
}

TEST(Histogram, CountsAtTheFirstBoundThatIsNotBelow) {
  Histogram histogram;
  for (const double seconds : {0.0, 0.001, 0.0011, 100.0, 100.5}) histogram.Add(seconds);
  EXPECT_EQ(histogram.counts.front(), 2);
  EXPECT_EQ(histogram.counts[1], 1);
  EXPECT_EQ(histogram.counts[Histogram::kBounds.size() - 1], 1);
  EXPECT_EQ(histogram.counts.back(), 1);
  EXPECT_EQ(histogram.count(), 5);
}

// --- Passes that round alike ---------------------------------------------------------------------

// Ten answers that have begun and two prompts, in an engine whose model notes its passes.
class InvariantPasses : public ::testing::Test {
 protected:
  InvariantPasses() {
    EngineConfig config = SmallConfig();
    config.scheduler = {.max_running = 12, .max_rows = 64, .batch_invariant = true};
    engine_ = Engine::Create(
        std::make_unique<FailingModel>(
            std::make_unique<CrowdedModel>(std::make_unique<TinyModel>(TinyModelOptions{}),
                                           Crowding::kByCount, &passes_),
            &failure_),
        config);
    for (int i = 0; i < 10; ++i) engine_->Submit(engine_->Open(), Asking(4, 50));
    for (std::int64_t begun = 0; begun < 10;) {
      for (const StepOutput& output : engine_->Step()) begun += output.result.sampled ? 1 : 0;
    }
    for (int i = 0; i < 2; ++i) engine_->Submit(engine_->Open(), Asking(16, 1));
    passes_.clear();
  }

  std::vector<PassShape> passes_;
  Failure failure_;
  std::unique_ptr<Engine> engine_;
};

TEST_F(InvariantPasses, AreOfAnswersAndOfOnePromptEach) {
  EXPECT_EQ(engine_->Step().size(), std::size_t{12});
  const std::vector<PassShape> expected = {{.tokens = 4, .sequences = 4, .least_rows = 4},
                                           {.tokens = 4, .sequences = 4, .least_rows = 4},
                                           {.tokens = 2, .sequences = 2, .least_rows = 4},
                                           {.tokens = 16, .sequences = 1, .least_rows = 0},
                                           {.tokens = 16, .sequences = 1, .least_rows = 0}};
  EXPECT_EQ(passes_, expected);
}

TEST_F(InvariantPasses, FailForTheirOwn) {
  failure_ = {.layer = 1, .least_tokens = 9};
  std::int64_t failed = 0;
  std::int64_t said = 0;
  for (const StepOutput& output : engine_->Step()) (output.failure ? failed : said) += 1;
  EXPECT_EQ(failed, 2);
  EXPECT_EQ(said, 10);
  failure_ = {};
  for (const StepOutput& output : engine_->Step()) EXPECT_TRUE(output.result.sampled);
}

// Logits of an answer beside so many others, with a model that rounds by a pass's rows.
std::vector<float> LogitsBeside(std::int64_t others, bool batch_invariant, std::int64_t guesses,
                                std::int64_t* accepted = nullptr) {
  EngineConfig config = SmallConfig();
  config.scheduler.batch_invariant = batch_invariant;
  const auto engine = Engine::Create(SmallModel(/*rounds=*/true), config);
  const auto asking = [&](std::int64_t tokens, std::int64_t answer) {
    Request request = Asking(tokens, answer);
    request.sampling.max_draft_tokens = guesses;
    request.keep_logits = true;
    return request;
  };
  const SequenceId sequence = engine->Open();
  engine->Submit(sequence, asking(20, 30));
  for (std::int64_t i = 0; i < others; ++i) engine->Submit(engine->Open(), asking(30, 20));
  std::vector<float> logits;
  while (engine->HasWork(sequence)) {
    for (const StepOutput& output : engine->Step()) {
      if (output.sequence != sequence || !output.result.sampled) continue;
      logits.insert(logits.end(), output.result.logits.begin(), output.result.logits.end());
    }
  }
  if (accepted != nullptr) *accepted = engine->metrics(sequence).accepted_tokens;
  return logits;
}

// Or the tests above would show nothing.
TEST(Engine, ProductsThatRoundByTheirSizeTellWhoRunsBeside) {
  EXPECT_NE(LogitsBeside(0, false, 0), LogitsBeside(3, false, 0));
  EXPECT_EQ(LogitsBeside(0, true, 0), LogitsBeside(3, true, 0));
}

// How many guess, and how far, hangs on the others; what comes of it does not.
TEST(Engine, GuessesRoundAlikeAsWell) {
  const std::vector<float> plain = LogitsBeside(0, true, 0);
  std::int64_t accepted = 0;
  EXPECT_EQ(LogitsBeside(0, true, 12, &accepted), plain);
  EXPECT_GT(accepted, 0);
  EXPECT_EQ(LogitsBeside(2, true, 12), plain);
  EXPECT_EQ(LogitsBeside(5, true, 12), plain);
  EXPECT_NE(LogitsBeside(0, false, 12), LogitsBeside(0, false, 0));
}

// An answer that is given goes on from a prompt that was only read, as one that is asked for does.
TEST(Engine, AForcedAnswerNeedsNoPrompt) {
  const auto engine = SmallEngine();
  const SequenceId once = engine->Open();
  const SequenceId parted = engine->Open();
  const std::vector<TokenId> answer = {4, 9, 2};
  Request whole = Asking(20, 0);
  whole.forced_answer = answer;
  engine->Submit(once, whole);
  engine->Submit(parted, Asking(20, 0));
  std::map<SequenceId, std::vector<float>> logprobs;
  const auto run = [&] {
    while (engine->HasWork()) {
      for (const StepOutput& output : engine->Step()) {
        if (output.result.sampled)
          logprobs[output.sequence].push_back(output.result.sampled->logprob);
      }
    }
  };
  run();
  Request rest{.ignore_end_tokens = true};
  rest.forced_answer = answer;
  engine->Submit(parted, rest);
  run();
  EXPECT_EQ(logprobs[once].size(), answer.size());
  EXPECT_EQ(logprobs[parted], logprobs[once]);
}

// Once a token has been said, what stood before it scores nothing.
TEST(Engine, AFirstTokenWithoutAPassEndsScoring) {
  const auto engine = SmallEngine();
  const SequenceId sequence = engine->Open();
  Request scored = Asking(20, 0);
  scored.score_prompt = true;
  engine->Submit(sequence, scored);
  while (engine->HasWork()) engine->Step();
  Request ends{.ignore_end_tokens = true};
  ends.forced_answer = {5};
  ends.stop_tokens = {5};  // so the token is never read
  engine->Submit(sequence, ends);
  EXPECT_EQ(engine->Step()[0].result.finish_reason, FinishReason::kStop);
  scored.prompt.resize(4);
  engine->Submit(sequence, scored);
  std::size_t scores = 0;
  while (engine->HasWork()) {
    for (const StepOutput& output : engine->Step())
      scores += output.result.negative_log_likelihood.size();
  }
  EXPECT_EQ(scores, std::size_t{3});
}

TEST(Engine, RowsThatAreTooFewAreRefused) {
  EngineConfig config = SmallConfig();
  config.scheduler = {.max_running = 4, .max_rows = 19};
  try {
    Engine::Create(std::make_unique<TinyModel>(TinyModelOptions{}), config);
    FAIL();
  } catch (const Error& error) {
    EXPECT_EQ(error.field(), "max_rows");
    EXPECT_NE(error.problem().find("at least 20"), std::string::npos);
  }
  config.scheduler.max_rows = 20;
  const auto engine = Engine::Create(std::make_unique<TinyModel>(TinyModelOptions{}), config);
  config.chunk_size = 17;
  EXPECT_THROW(engine->Open(config), Error);
}

}  // namespace
}  // namespace carousel
