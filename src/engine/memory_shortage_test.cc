// SPDX-License-Identifier: Apache-2.0
// Many sequences while memory is refused here and there: whatever lacked it, a later step makes up
// for it, and every answer is what it would have been.
#include <gtest/gtest.h>

#include <sys/types.h>

#include <algorithm>
#include <atomic>
#include <cerrno>
#include <map>
#include <memory>
#include <new>
#include <string>
#include <vector>

#include "carousel/engine.h"
#include "carousel/error.h"
#include "engine/tiny_model.h"
#include "testing/failing_memory.h"
#include "testing/random_cases.h"
#include "testing/random_draws.h"

namespace {

// How many of the disk's next calls it still does.
std::int64_t disk_calls_left = carousel::testing::kNoEnd;
std::int64_t disk_refusals = 0;

bool DiskRefuses() {
  if (--disk_calls_left >= 0) return false;
  ++disk_refusals;
  errno = ENOSPC;
  return true;
}

}  // namespace

// The linker puts these in the places of the library's calls.
extern "C" {
int __real_fallocate(int file, int mode, off_t offset, off_t bytes);
int __wrap_fallocate(int file, int mode, off_t offset, off_t bytes) {
  return DiskRefuses() ? -1 : __real_fallocate(file, mode, offset, bytes);
}

// Writes half of it before it fails.
ssize_t __real_pwrite(int file, const void* from, size_t bytes, off_t offset);
ssize_t __wrap_pwrite(int file, const void* from, size_t bytes, off_t offset) {
  if (DiskRefuses()) return -1;
  return __real_pwrite(file, from, disk_calls_left == 0 ? bytes / 2 : bytes, offset);
}
}

namespace carousel {
namespace {

using testing::buffers_left;
using testing::kNoEnd;
using testing::objects_left;

EngineConfig SmallConfig() {
  EngineConfig config;
  config.cache.block_size = 8;
  config.cache.limit_tokens = 160;  // fewer sequences than run have room
  config.chunk_size = 16;
  config.eviction = EvictionConfig{.start_size = 8, .recent_size = 16, .max_cache_size = 64};
  config.checkpoint_bytes = std::int64_t{1} << 20;
  config.scheduler.max_running = 5;
  return config;
}

std::vector<Request> SomeRequests(Generator* generator) {
  std::vector<Request> requests;
  const std::vector<TokenId> common = Tokens(generator, 40);
  for (int i = 0; i < 7; ++i) {
    Request request{.prompt = Tokens(generator, Pick(generator, 1, 60)),
                    .max_new_tokens = Pick(generator, 1, 12),
                    .ignore_end_tokens = true};
    if (Pick(generator, 0, 1) == 0)
      request.prompt.insert(request.prompt.begin(), common.begin(), common.end());
    if (Pick(generator, 0, 1) == 0) {
      request.sampling = {.temperature = 1.0, .repetition_penalty = 1.2, .seed = 7};
    }
    request.sampling.max_draft_tokens = Pick(generator, 0, 1) * 4;
    request.priority = Pick(generator, 0, 2);
    requests.push_back(request);
  }
  return requests;
}

// Requests in sequences of their own. Each step may have as much memory as `grant` leaves it.
class Asking {
 public:
  explicit Asking(const std::vector<Request>& requests, const std::string& swap_directory = "") {
    EngineConfig config = SmallConfig();
    config.swap_directory = swap_directory;
    engine_ = Engine::Create(std::make_unique<TinyModel>(TinyModelOptions{}), config);
    for (const Request& request : requests) {
      const SequenceId sequence = engine_->Open();
      asked_[sequence] = request;
      Submit(sequence);
    }
  }

  template <typename Grant>
  std::vector<std::vector<TokenId>> Answer(Grant grant) {
    while (engine_->HasWork()) {
      std::vector<StepOutput> outputs;
      grant();
      try {
        outputs = engine_->Step();
      } catch (const std::bad_alloc&) {
        ++refused_steps_;
      }
      objects_left = kNoEnd;
      buffers_left = kNoEnd;
      disk_calls_left = kNoEnd;
      for (const StepOutput& output : outputs) Take(output);
      swapped_bytes_ = std::max(swapped_bytes_, engine_->metrics().swapped_bytes);
    }
    std::vector<std::vector<TokenId>> answers;
    for (const auto& [sequence, request] : asked_) {
      answers.push_back(said_[sequence]);
      engine_->Close(sequence);
    }
    preemptions_ = engine_->metrics().preemptions;
    return answers;
  }

  std::int64_t swapped_bytes() const { return swapped_bytes_; }  // at most, at once
  std::int64_t preemptions() const { return preemptions_; }
  std::int64_t refused_steps() const { return refused_steps_; }
  std::int64_t failures() const { return failures_; }
  std::int64_t broken() const { return broken_; }

 private:
  void Submit(SequenceId sequence) {
    said_[sequence].clear();
    engine_->Submit(sequence, asked_.at(sequence));
  }

  void Take(const StepOutput& output) {
    if (output.result.sampled) said_[output.sequence].push_back(output.result.sampled->token);
    if (!output.failure) return;
    ++failures_;
    if (!engine_->metrics(output.sequence).needs_reset) return;
    ++broken_;
    engine_->Reset(output.sequence);
    Submit(output.sequence);
  }

  std::unique_ptr<Engine> engine_;
  std::map<SequenceId, Request> asked_;
  std::map<SequenceId, std::vector<TokenId>> said_;
  std::int64_t swapped_bytes_ = 0;
  std::int64_t preemptions_ = 0;
  std::int64_t refused_steps_ = 0;
  std::int64_t failures_ = 0;
  std::int64_t broken_ = 0;
};

TEST(MemoryShortage, ChangesNoAnswer) {
  Generator generator(53);
  std::int64_t preemptions = 0;
  std::int64_t refused_steps = 0;
  std::int64_t failures = 0;
  for (int scenario = 0; scenario < RandomCases(60); ++scenario) {
    SCOPED_TRACE(scenario);
    const std::vector<Request> requests = SomeRequests(&generator);
    const auto expected = Asking(requests).Answer([] {});
    Asking asking(requests);
    const bool small = scenario % 2 == 0;  // what is refused: objects, or buffers for blocks
    const auto answers = asking.Answer([&] {
      if (Pick(&generator, 0, 1) == 0) return;
      (small ? objects_left : buffers_left) = Pick(&generator, 0, small ? 80 : 2);
    });
    ASSERT_EQ(answers, expected);
    preemptions += asking.preemptions();
    refused_steps += asking.refused_steps();
    failures += asking.failures();
  }
  EXPECT_GT(preemptions, RandomCases(60));
  EXPECT_GT(refused_steps, 0);
  EXPECT_GT(failures, RandomCases(60));
}

// Sequences that leave for a disk, which has no room for them now and then.
TEST(MemoryShortage, AFullDiskChangesNoAnswer) {
  Generator generator(89);
  std::int64_t swapped_bytes = 0;
  disk_refusals = 0;
  for (int scenario = 0; scenario < RandomCases(40); ++scenario) {
    SCOPED_TRACE(scenario);
    const std::vector<Request> requests = SomeRequests(&generator);
    const auto expected = Asking(requests).Answer([] {});
    Asking asking(requests, ::testing::TempDir());
    const auto answers = asking.Answer([&] {
      if (Pick(&generator, 0, 1) == 0) disk_calls_left = Pick(&generator, 0, 12);
    });
    ASSERT_EQ(answers, expected);
    EXPECT_EQ(asking.failures(), 0);
    swapped_bytes += asking.swapped_bytes();
  }
  EXPECT_GT(swapped_bytes, 0);
  EXPECT_GT(disk_refusals, RandomCases(40) / 4);
}

// A request is in the line, or it is not there at all.
TEST(MemoryShortage, ARequestIsSubmittedWholeOrNotAtAll) {
  Generator generator(59);
  const std::vector<TokenId> prompt = Tokens(&generator, 30);
  const auto engine =
      Engine::Create(std::make_unique<TinyModel>(TinyModelOptions{}), SmallConfig());
  const SequenceId sequence = engine->Open();
  const Request request{.prompt = prompt,
                        .pinned = {{.begin = 8, .end = 12}},
                        .max_new_tokens = 3,
                        .ignore_end_tokens = true,
                        .sampling = {.temperature = 1.0, .repetition_penalty = 1.2}};
  std::int64_t granted = 0;
  for (bool is_in = false; !is_in; ++granted) {
    ASSERT_LT(granted, 1000);
    Request asked = request;
    objects_left = granted;
    try {
      engine->Submit(sequence, std::move(asked));
      is_in = true;
    } catch (const std::bad_alloc&) {
    }
    objects_left = kNoEnd;
    EXPECT_EQ(engine->HasWork(sequence), is_in);
    EXPECT_EQ(engine->HasWork(), is_in);
  }
  EXPECT_GT(granted, 10);
  std::int64_t said = 0;
  while (engine->HasWork()) {
    for (const StepOutput& output : engine->Step()) said += output.result.sampled ? 1 : 0;
  }
  EXPECT_EQ(said, 3);
}

// What was cancelled ends, once, however little memory the steps have.
TEST(MemoryShortage, WhatWasCancelledIsNotForgotten) {
  for (std::int64_t granted = 0; granted < 40; ++granted) {
    const auto engine =
        Engine::Create(std::make_unique<TinyModel>(TinyModelOptions{}), SmallConfig());
    std::vector<RequestId> requests;
    for (int i = 0; i < 3; ++i) {
      requests.push_back(engine->Submit(
          engine->Open(), {.prompt = {1, 2, 3}, .max_new_tokens = 4, .ignore_end_tokens = true}));
    }
    engine->Step();
    engine->Cancel(requests[0]);
    engine->Cancel(requests[2]);
    std::map<RequestId, int> ended;
    for (int step = 0; engine->HasWork(); ++step) {
      std::vector<StepOutput> outputs;
      if (step < 3) objects_left = granted;
      try {
        outputs = engine->Step();
      } catch (const std::bad_alloc&) {
      }
      objects_left = kNoEnd;
      for (const StepOutput& output : outputs) {
        if (output.result.finish_reason == FinishReason::kNone && !output.failure) continue;
        if (output.failure && engine->HasWork(output.sequence)) continue;
        ++ended[output.request];
      }
    }
    EXPECT_EQ(ended,
              (std::map<RequestId, int>{{requests[0], 1}, {requests[1], 1}, {requests[2], 1}}))
        << granted;
  }
}

}  // namespace
}  // namespace carousel
