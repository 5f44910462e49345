// SPDX-License-Identifier: Apache-2.0
#include "carousel/engine_loop.h"

#include <gtest/gtest.h>

#include <atomic>
#include <functional>
#include <future>
#include <memory>
#include <new>
#include <string>
#include <thread>
#include <utility>
#include <vector>

#include "carousel/error.h"
#include "engine/tiny_model.h"
#include "testing/failing_model.h"

namespace carousel {
namespace {

std::unique_ptr<Engine> SmallEngine(std::unique_ptr<Model> model) {
  EngineConfig config;
  config.cache.block_size = 8;
  config.chunk_size = 16;
  config.eviction = EvictionConfig{.start_size = 8, .recent_size = 16, .max_cache_size = 48};
  return Engine::Create(std::move(model), config);
}

std::unique_ptr<EngineLoop> SmallLoop() {
  return EngineLoop::Start(SmallEngine(std::make_unique<TinyModel>(TinyModelOptions{})));
}

Request Asking(TokenId first, std::int64_t answer) {
  Request request{.max_new_tokens = answer, .ignore_end_tokens = true};
  for (TokenId i = 0; i < 40; ++i) request.prompt.push_back((first + 3 * i) % 61);
  return request;
}

// Waits for an answer.
std::vector<TokenId> Answer(EngineLoop* loop, SequenceId sequence, Request request) {
  std::vector<TokenId> tokens;
  std::promise<void> done;
  loop->Submit(sequence, std::move(request), [&](const StepOutput& output) {
    if (output.result.sampled) tokens.push_back(output.result.sampled->token);
    if (output.result.finish_reason != FinishReason::kNone) done.set_value();
  });
  done.get_future().get();
  return tokens;
}

TEST(EngineLoop, ThreadsGetWhatTheyWouldGetAlone) {
  constexpr int kThreads = 6;
  std::vector<std::vector<TokenId>> alone;
  for (int i = 0; i < kThreads; ++i) {
    const auto loop = SmallLoop();
    const SequenceId sequence = loop->Call([](Engine& engine) { return engine.Open(); });
    for (int turn = 0; turn < 3; ++turn)
      alone.push_back(Answer(loop.get(), sequence, Asking(i + turn, 20)));
  }
  const auto loop = SmallLoop();
  std::vector<std::thread> threads;
  std::vector<std::vector<TokenId>> together(alone.size());
  for (int i = 0; i < kThreads; ++i) {
    threads.emplace_back([&, i] {
      const SequenceId sequence = loop->Call([](Engine& engine) { return engine.Open(); });
      for (int turn = 0; turn < 3; ++turn) {
        together[static_cast<std::size_t>(3 * i + turn)] =
            Answer(loop.get(), sequence, Asking(i + turn, 20));
      }
      loop->Close(sequence);
    });
  }
  for (std::thread& thread : threads) thread.join();
  EXPECT_EQ(together, alone);
  EXPECT_EQ(loop->Call([](Engine& engine) { return engine.metrics().cache_bytes; }), 0);
}

TEST(EngineLoop, CancelsFromAnotherThread) {
  const auto loop = SmallLoop();
  const SequenceId sequence = loop->Call([](Engine& engine) { return engine.Open(); });
  std::promise<void> begun;
  std::promise<FinishReason> ended;
  bool has_begun = false;
  const RequestId request =
      loop->Submit(sequence, Asking(0, 1'000'000), [&](const StepOutput& output) {
        if (!std::exchange(has_begun, true)) begun.set_value();
        if (output.result.finish_reason != FinishReason::kNone)
          ended.set_value(output.result.finish_reason);
      });
  begun.get_future().get();
  loop->Cancel(request);
  EXPECT_EQ(ended.get_future().get(), FinishReason::kCancelled);
}

TEST(EngineLoop, WhatIsRefusedIsThrownWhereItWasAsked) {
  const auto loop = SmallLoop();
  const SequenceId sequence = loop->Call([](Engine& engine) { return engine.Open(); });
  EXPECT_THROW(loop->Submit(sequence, {.prompt = {}}, [](const StepOutput&) {}), Error);
  EXPECT_EQ(Answer(loop.get(), sequence, Asking(1, 3)).size(), std::size_t{3});
}

TEST(EngineLoop, AFailureIsTheLastOutput) {
  Failure failure;
  auto failing = SmallEngine(
      std::make_unique<FailingModel>(std::make_unique<TinyModel>(TinyModelOptions{}), &failure));
  failure.layer = 1;
  const auto loop = EngineLoop::Start(std::move(failing));
  const SequenceId sequence = loop->Call([](Engine& engine) { return engine.Open(); });
  std::promise<bool> failed;
  std::promise<bool> had_ended;
  loop->Submit(sequence, Asking(0, 5), [&](const StepOutput& output) {
    failed.set_value(output.failure != nullptr);  // a second time would throw
    had_ended.set_value(
        loop->Call([&](Engine& engine) { return !engine.HasWork(output.sequence); }));
  });
  EXPECT_TRUE(failed.get_future().get());
  EXPECT_TRUE(had_ended.get_future().get());
}

// Sequences that are closed or reset by whatever way: their callbacks go with them.
TEST(EngineLoop, ForgetsTheCallbacksOfWhatIsForgotten) {
  const auto loop = SmallLoop();
  const auto kept = std::make_shared<int>(0);
  for (const bool closes : {true, false}) {
    const SequenceId sequence = loop->Call([](Engine& engine) { return engine.Open(); });
    loop->Submit(sequence, Asking(0, 1'000'000), [kept](const StepOutput&) {});
    EXPECT_EQ(kept.use_count(), 2);
    loop->Call([&](Engine& engine) {
      if (closes) {
        engine.Close(sequence);
      } else {
        engine.Reset(sequence);
      }
    });
    EXPECT_EQ(kept.use_count(), 1);
  }
}

// An engine whose next steps lack memory.
class ShortEngine final : public Engine {
 public:
  ShortEngine(std::unique_ptr<Engine> engine, std::atomic<int>* steps)
      : engine_(std::move(engine)), steps_(*steps) {}

  const Model& model() const override { return engine_->model(); }
  const EngineConfig& config() const override { return engine_->config(); }
  std::string rotation_reason() const override { return engine_->rotation_reason(); }
  SequenceId Open() override { return engine_->Open(); }
  SequenceId Open(const EngineConfig& config) override { return engine_->Open(config); }
  void Close(SequenceId sequence) override { engine_->Close(sequence); }
  void Reset(SequenceId sequence) override { engine_->Reset(sequence); }
  void OnForget(std::function<void(SequenceId)> tell) override {
    engine_->OnForget(std::move(tell));
  }
  CheckpointId Mark(SequenceId sequence) override { return engine_->Mark(sequence); }
  void Rewind(SequenceId sequence, CheckpointId checkpoint) override {
    engine_->Rewind(sequence, checkpoint);
  }
  SequenceId Fork(CheckpointId checkpoint) override { return engine_->Fork(checkpoint); }
  SequenceId Fork(SequenceId sequence) override { return engine_->Fork(sequence); }
  void Drop(CheckpointId checkpoint) override { engine_->Drop(checkpoint); }
  RequestId Submit(SequenceId sequence, Request request) override {
    return engine_->Submit(sequence, std::move(request));
  }
  bool HasWork() const override { return engine_->HasWork(); }
  bool HasWork(SequenceId sequence) const override { return engine_->HasWork(sequence); }
  void Cancel(RequestId request) override { engine_->Cancel(request); }
  std::vector<StepOutput> Step() override {
    if (--steps_ >= 0) throw std::bad_alloc();
    return engine_->Step();
  }
  EngineMetrics metrics() const override { return engine_->metrics(); }
  SequenceMetrics metrics(SequenceId sequence) const override { return engine_->metrics(sequence); }
  void GatherAttention(SequenceId sequence, bool gather) override {
    engine_->GatherAttention(sequence, gather);
  }
  std::int64_t cache_groups(SequenceId sequence) const override {
    return engine_->cache_groups(sequence);
  }
  std::vector<BlockAttention> GatheredAttention(SequenceId sequence,
                                                std::int64_t group) const override {
    return engine_->GatheredAttention(sequence, group);
  }

 private:
  std::unique_ptr<Engine> engine_;
  std::atomic<int>& steps_;
};

TEST(EngineLoop, AStepThatLacksMemoryIsTriedAgain) {
  const auto plain = SmallLoop();
  const auto expected =
      Answer(plain.get(), plain->Call([](Engine& engine) { return engine.Open(); }), Asking(0, 20));
  std::atomic<int> refused = 3;
  const auto loop = EngineLoop::Start(std::make_unique<ShortEngine>(
      SmallEngine(std::make_unique<TinyModel>(TinyModelOptions{})), &refused));
  const SequenceId sequence = loop->Call([](Engine& engine) { return engine.Open(); });
  EXPECT_EQ(Answer(loop.get(), sequence, Asking(0, 20)), expected);
}

TEST(EngineLoop, WhereMemoryStaysShortRequestsFail) {
  std::atomic<int> refused = 15;
  const auto loop = EngineLoop::Start(std::make_unique<ShortEngine>(
      SmallEngine(std::make_unique<TinyModel>(TinyModelOptions{})), &refused));
  const SequenceId sequence = loop->Call([](Engine& engine) { return engine.Open(); });
  std::promise<std::exception_ptr> failure;
  loop->Submit(sequence, Asking(0, 20),
               [&](const StepOutput& output) { failure.set_value(output.failure); });
  EXPECT_THROW(std::rethrow_exception(failure.get_future().get()), std::bad_alloc);
  EXPECT_EQ(Answer(loop.get(), sequence, Asking(0, 20)).size(), std::size_t{20});
}

TEST(EngineLoop, EndsInTheMiddle) {
  std::promise<void> begun;
  bool has_begun = false;
  const auto loop = SmallLoop();
  const SequenceId sequence = loop->Call([](Engine& engine) { return engine.Open(); });
  loop->Submit(sequence, Asking(0, 1'000'000), [&](const StepOutput&) {
    if (!std::exchange(has_begun, true)) begun.set_value();
  });
  begun.get_future().get();
}

// A callback asks for the next turn itself.
TEST(EngineLoop, CallbacksMayAsk) {
  const auto loop = SmallLoop();
  const SequenceId sequence = loop->Call([](Engine& engine) { return engine.Open(); });
  std::promise<int> done;
  int turns = 0;
  std::function<void()> ask = [&] {
    loop->Submit(sequence, Asking(turns, 2), [&](const StepOutput& output) {
      if (output.result.finish_reason == FinishReason::kNone) return;
      if (++turns == 4) return done.set_value(turns);
      ask();
    });
  };
  ask();
  EXPECT_EQ(done.get_future().get(), 4);
}

}  // namespace
}  // namespace carousel
