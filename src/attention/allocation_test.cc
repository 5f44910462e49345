// SPDX-License-Identifier: Apache-2.0
// No step allocates once its sizes have been seen. This program counts what goes through new and
// what AlignedBuffer takes.
#include <gtest/gtest.h>

#include <atomic>
#include <cstdlib>
#include <new>
#include <random>
#include <vector>

#include "attention/paged_attention.h"
#include "base/aligned_buffer.h"
#include "base/parallel.h"
#include "cache/block_codec.h"

namespace {
std::atomic<std::int64_t> allocations = 0;
}  // namespace

// The linker puts this in the place of the library's calls of aligned_alloc.
extern "C" void* __real_aligned_alloc(std::size_t alignment, std::size_t bytes);
extern "C" void* __wrap_aligned_alloc(std::size_t alignment, std::size_t bytes) {
  ++allocations;
  return __real_aligned_alloc(alignment, bytes);
}

// Not inlined, or GCC takes the pair for a mismatch.
[[gnu::noinline]] void* operator new(std::size_t bytes) {
  ++allocations;
  void* memory = std::malloc(bytes);
  if (memory == nullptr) throw std::bad_alloc();
  return memory;
}
[[gnu::noinline]] void operator delete(void* memory) noexcept { std::free(memory); }
[[gnu::noinline]] void operator delete(void* memory, std::size_t) noexcept { std::free(memory); }

namespace carousel {
namespace {

TEST(PagedAttention, AllocatesNothingOnceSizesHaveBeenSeen) {
  constexpr std::int64_t kBlock = 32;
  constexpr std::int64_t kBlocks = 40;
  const AttentionLayerSpec layer{
      .query_heads = 6, .kv_heads = 2, .key_dim = 64, .value_dim = 64, .scale = 0.125F};
  for (const KvType type : {KvType::kF32, KvType::kF16, KvType::kInt8, KvType::kInt4}) {
    for (const std::int64_t queries : {1, 7, 100}) {
      SCOPED_TRACE(::testing::Message()
                   << "type " << static_cast<int>(type) << ", " << queries << " queries");
      const BlockShape shape{.block_size = kBlock,
                             .kv_heads = 2,
                             .key_dim = 64,
                             .value_dim = 64,
                             .key_type = type,
                             .value_type = type};
      std::vector<AlignedBuffer<std::byte>> memory;
      std::vector<AttentionBlock> blocks;
      std::mt19937 generator(1);
      std::normal_distribution<float> normal;
      std::vector<float> numbers(kBlock * 64);
      for (std::int64_t i = 0; i < kBlocks; ++i) {
        memory.emplace_back(shape.bytes());
        for (std::int64_t head = 0; head < 2; ++head) {
          for (float& x : numbers) x = normal(generator);
          CodecFor(type).RewriteKeys(memory.back().data() + shape.key_offset(head), kBlock, 64,
                                     numbers.data());
          CodecFor(type).WriteValues(memory.back().data() + shape.value_offset(head), kBlock, 64, 0,
                                     kBlock, numbers.data(), 64);
        }
        blocks.push_back({.data = memory.back().data(),
                          .shape = &shape,
                          .tokens = kBlock,
                          .shift_blocks = i % 3,
                          .attention = Position{i * kBlock},
                          .logical = Position{i * kBlock}});
      }
      RotationTable rotation({.rotated_dims = 64, .frequencies = PlainFrequencies(10000.0, 64)},
                             kBlock);
      rotation.Extend(3);
      std::vector<float> q(static_cast<std::size_t>(queries * 6 * 64), 0.1F);
      std::vector<float> out(q.size());
      std::vector<float> mass(kBlocks * kBlock);
      const AttentionTask task{{.layer = &layer,
                                .kv_heads = 2,
                                .block_size = kBlock,
                                .rotation = &rotation,
                                .blocks = blocks,
                                .queries = queries,
                                .first_query_attention = Position{kBlocks * kBlock - queries},
                                .first_query_logical = Position{kBlocks * kBlock - queries},
                                .q = q.data(),
                                .counted_queries = 1},
                               {.out = out.data(), .token_mass = mass}};
      PagedAttention attention;
      // Scratch is each thread's own, and a loop need not reach every thread; on one it does.
      SetThreadCount(1);
      attention.Run(task);
      const std::int64_t before = allocations;
      for (int step = 0; step < 5; ++step) attention.Run(task);
      EXPECT_EQ(allocations - before, 0);
    }
  }
  SetThreadCount(0);
}

TEST(AllocationCount, SeesBothKinds) {
  const std::int64_t before = allocations;
  const AlignedBuffer<float> buffer(100);
  const std::vector<float> numbers(100);
  EXPECT_EQ(allocations - before, 2);
}

}  // namespace
}  // namespace carousel
