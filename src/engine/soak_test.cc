// SPDX-License-Identifier: Apache-2.0
// Hours of a server's life in fast forward: requests of mixed lengths that begin alike, some of
// them cancelled, over sequences that come and go, in less memory than all want at once. What the
// process holds must not grow, and at the end every block is back.
//
// CAROUSEL_SOAK_REQUESTS says how many requests: 14,400 are four hours of one a second.
#include <gtest/gtest.h>
#include <unistd.h>

#include <algorithm>
#include <cstdio>
#include <fstream>
#include <map>
#include <memory>
#include <vector>

#include "carousel/engine.h"
#include "engine/engine_inside.h"
#include "engine/tiny_model.h"
#include "testing/random_cases.h"
#include "testing/random_draws.h"

namespace carousel {
namespace {

// Of the process, resident; 0 where that is not to be had.
std::int64_t ResidentBytes() {
  std::int64_t pages = 0;
  std::int64_t resident = 0;
  std::ifstream("/proc/self/statm") >> pages >> resident;
  return resident * sysconf(_SC_PAGESIZE);
}

class Soak {
 public:
  explicit Soak(std::uint64_t seed) : generator_(seed) {
    EngineConfig config;
    config.cache = {.block_size = 8, .key_type = KvType::kF16, .value_type = KvType::kF16};
    config.cache.limit_tokens = 400;
    config.chunk_size = 16;
    config.eviction = EvictionConfig{.start_size = 8, .recent_size = 16, .max_cache_size = 48};
    config.recall = {.blocks = 2};
    config.recall.limit_tokens = 256;
    config.checkpoint_bytes = 200'000;
    config.scheduler = {.max_running = 8, .max_waiting = 100};
    engine_ = Engine::Create(std::make_unique<TinyModel>(TinyModelOptions{}), config);
    for (std::vector<TokenId>& beginning : beginnings_) beginning = Tokens(&generator_, 40);
  }

  const Engine& engine() const { return *engine_; }

  // Serves so many requests more, and at most 16 at once.
  void Serve(std::int64_t requests) {
    while (requests > 0 || engine_->HasWork()) {
      if (requests > 0 && std::ssize(open_) < 16 &&
          (open_.empty() || Pick(&generator_, 0, 2) == 0)) {
        Ask();
        --requests;
      }
      if (!open_.empty() && Pick(&generator_, 0, 30) == 0) {
        const auto at = std::next(open_.begin(), Pick(&generator_, 0, std::ssize(open_) - 1));
        engine_->Cancel(at->second.request);
      }
      if (engine_->HasWork()) Step();
      if (::testing::Test::HasFailure()) return;
    }
    InsideOf(*engine_).CheckIntegrity();
  }

 private:
  struct Open {
    RequestId request;
    std::int64_t turns_left = 0;
  };

  Request RandomRequest() {
    Request request{.prompt = Tokens(&generator_, Pick(&generator_, 1, 60)),
                    .max_new_tokens = Pick(&generator_, 1, 24),
                    .ignore_end_tokens = true};
    if (Pick(&generator_, 0, 1) == 0) {
      const auto& beginning = beginnings_[static_cast<std::size_t>(Pick(&generator_, 0, 3))];
      request.prompt.insert(request.prompt.begin(), beginning.begin(), beginning.end());
    }
    if (Pick(&generator_, 0, 1) == 0) request.sampling.max_draft_tokens = 4;
    request.priority = Pick(&generator_, 0, 1);
    return request;
  }

  void Ask() {
    const SequenceId sequence = engine_->Open();
    open_[sequence] = {.request = engine_->Submit(sequence, RandomRequest()),
                       .turns_left = Pick(&generator_, 0, 2)};
  }

  void Step() {
    for (const StepOutput& output : engine_->Step()) {
      ASSERT_FALSE(output.failure);
      if (output.result.finish_reason == FinishReason::kNone) continue;
      Open& open = open_.at(output.sequence);
      if (open.turns_left-- > 0) {
        open.request = engine_->Submit(output.sequence, RandomRequest());
      } else {
        engine_->Close(output.sequence);
        open_.erase(output.sequence);
      }
    }
  }

  Generator generator_;
  std::unique_ptr<Engine> engine_;
  std::vector<TokenId> beginnings_[4];
  std::map<SequenceId, Open> open_;
};

// An hour of one request a second, but for the second turns.
constexpr int kRequests = 60 * 60;

TEST(Soak, HoursLeaveNothingBehind) {
  const std::int64_t requests = NumberFrom("CAROUSEL_SOAK_REQUESTS", RandomCases(kRequests));
  Soak soak(1);
  soak.Serve(requests / 4);
  const std::int64_t early = ResidentBytes();
  const EngineMetrics before = soak.engine().metrics();
  for (int quarter = 1; quarter < 4; ++quarter) {
    soak.Serve(requests / 4);
    if (HasFailure()) return;
  }
  const EngineMetrics after = soak.engine().metrics();
  std::printf("%lld steps, %lld preemptions, %lld tokens reused; resident %lld and %lld bytes\n",
              static_cast<long long>(after.steps), static_cast<long long>(after.preemptions),
              static_cast<long long>(after.reused_tokens), static_cast<long long>(early),
              static_cast<long long>(ResidentBytes()));
  EXPECT_EQ(after.sequences, 0);
  EXPECT_EQ(after.moved_out_bytes, 0);
  EXPECT_EQ(after.requests_running + after.requests_waiting, 0);
  EXPECT_LE(after.cache_bytes, after.checkpoint_bytes);
  EXPECT_LE(after.reserved_bytes, after.limit_bytes);
  EXPECT_GT(after.preemptions, before.preemptions);
  EXPECT_GT(after.reused_tokens, before.reused_tokens);
  EXPECT_GT(after.accepted_tokens, before.accepted_tokens);
  // Sanitizers keep what was freed.
  if (RandomCases(kRequests) == kRequests) {
    EXPECT_LE(ResidentBytes(), early + early / 20);
  }
}

}  // namespace
}  // namespace carousel
