// SPDX-License-Identifier: Apache-2.0
// No step allocates once its sizes have been seen, and one that cannot says so. This program counts
// what goes through new and what AlignedBuffer takes, of which it can refuse what comes too late.
#include <gtest/gtest.h>

#include <new>
#include <random>
#include <thread>
#include <vector>

#include "attention/paged_attention.h"
#include "base/aligned_buffer.h"
#include "base/parallel.h"
#include "cache/block_codec.h"
#include "testing/failing_memory.h"

namespace carousel {
namespace {

using testing::allocations;
using testing::buffers_left;

// A layer's full blocks of random keys and values, and what a step of so many queries asks of them.
class Step {
 public:
  Step(KvType type, std::int64_t queries)
      : shape_{.block_size = kBlock,
               .kv_heads = 2,
               .key_dim = 64,
               .value_dim = 64,
               .key_type = type,
               .value_type = type},
        rotation_({.rotated_dims = 64, .frequencies = PlainFrequencies(10000.0, 64)}, kBlock),
        q_(static_cast<std::size_t>(queries * 6 * 64), 0.1F),
        out_(q_.size()),
        mass_(kBlocks * kBlock) {
    rotation_.Extend(3);
    std::mt19937 generator(1);
    std::normal_distribution<float> normal;
    std::vector<float> numbers(kBlock * 64);
    for (std::int64_t i = 0; i < kBlocks; ++i) {
      memory_.emplace_back(shape_.bytes());
      for (std::int64_t head = 0; head < 2; ++head) {
        for (float& x : numbers) x = normal(generator);
        CodecFor(type).RewriteKeys(memory_.back().data() + shape_.key_offset(head), kBlock, 64,
                                   numbers.data());
        CodecFor(type).WriteValues(memory_.back().data() + shape_.value_offset(head), kBlock, 64, 0,
                                   kBlock, numbers.data(), 64);
      }
      blocks_.push_back({.data = memory_.back().data(),
                         .shape = &shape_,
                         .tokens = kBlock,
                         .shift_blocks = i % 3,
                         .attention = Position{i * kBlock},
                         .logical = Position{i * kBlock}});
    }
    task_ = {{.layer = &layer_,
              .kv_heads = 2,
              .block_size = kBlock,
              .rotation = &rotation_,
              .blocks = blocks_,
              .queries = queries,
              .first_query_attention = Position{kBlocks * kBlock - queries},
              .first_query_logical = Position{kBlocks * kBlock - queries},
              .q = q_.data(),
              .counted_queries = 1},
             {.out = out_.data(), .token_mass = mass_}};
  }
  Step(const Step&) = delete;
  Step& operator=(const Step&) = delete;

  const AttentionTask& task() const { return task_; }
  const std::vector<float>& out() const { return out_; }

 private:
  static constexpr std::int64_t kBlock = 32;
  static constexpr std::int64_t kBlocks = 40;

  AttentionLayerSpec layer_{
      .query_heads = 6, .kv_heads = 2, .key_dim = 64, .value_dim = 64, .scale = 0.125F};
  BlockShape shape_;
  RotationTable rotation_;
  std::vector<AlignedBuffer<std::byte>> memory_;
  std::vector<AttentionBlock> blocks_;
  std::vector<float> q_;
  std::vector<float> out_;
  std::vector<float> mass_;
  AttentionTask task_;
};

TEST(PagedAttention, AllocatesNothingOnceSizesHaveBeenSeen) {
  for (const KvType type : {KvType::kF32, KvType::kF16, KvType::kInt8, KvType::kInt4}) {
    for (const std::int64_t queries : {1, 7, 100}) {
      SCOPED_TRACE(::testing::Message()
                   << "type " << static_cast<int>(type) << ", " << queries << " queries");
      const Step step(type, queries);
      PagedAttention attention;
      // Scratch is each thread's own, and a loop need not reach every thread; on one it does.
      SetThreadCount(1);
      attention.Run(step.task());
      const std::int64_t before = allocations;
      for (int times = 0; times < 5; ++times) attention.Run(step.task());
      EXPECT_EQ(allocations - before, 0);
    }
  }
  SetThreadCount(0);
}

// How many buffers a call asks for when each is refused in its turn, of the call's or of one of its
// threads. All threads come back, and the same object computes what it should once there is memory.
int CountRefusals(const Step& step, const std::vector<float>& expected) {
  constexpr int kMost = 100;
  for (int granted = 0; granted < kMost; ++granted) {
    bool is_refused = false;
    // A thread of its own begins without scratch.
    std::jthread([&] {
      PagedAttention attention;
      buffers_left = granted;
      try {
        attention.Run(step.task());
      } catch (const std::bad_alloc&) {
        is_refused = true;
      }
      buffers_left = testing::kNoEnd;
      attention.Run(step.task());
    }).join();
    EXPECT_EQ(step.out(), expected) << granted << " buffers granted";
    if (!is_refused) return granted;
  }
  return kMost;
}

TEST(PagedAttention, ThrowsWhereMemoryEndsAndGoesOnWhereItDoesNot) {
  const Step step(KvType::kInt8, 1);
  PagedAttention().Run(step.task());
  // The other threads may leave nothing to the one that has no scratch yet.
  EXPECT_GE(CountRefusals(step, std::vector<float>(step.out())), 3);
  SetThreadCount(1);
  PagedAttention().Run(step.task());  // one thread adds in another order
  const int refusals = CountRefusals(step, std::vector<float>(step.out()));
  SetThreadCount(0);
  EXPECT_GT(refusals, 5);
  EXPECT_LT(refusals, 100);
}

TEST(AllocationCount, SeesBothKinds) {
  const std::int64_t before = allocations;
  const AlignedBuffer<float> buffer(100);
  const std::vector<float> numbers(100);
  EXPECT_EQ(allocations - before, 2);
}

}  // namespace
}  // namespace carousel
