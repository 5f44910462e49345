// SPDX-License-Identifier: Apache-2.0
// Attention of one SmolLM2-135M layer (9 query heads, 3 KV heads, head size 64, blocks of 32
// tokens): decode and prompt, f32 and f16 caches, no rotation against a shift of its own for every
// block; and one eviction's cost in the two ways of rotating.
#include <benchmark/benchmark.h>

#include <cmath>
#include <memory>
#include <random>
#include <vector>

#include "attention/paged_attention.h"
#include "cache/block_codec.h"
#include "cache/block_pool.h"
#include "rope/rotate.h"

namespace carousel {
namespace {

constexpr std::int64_t kBlock = 32;
constexpr std::int64_t kDim = 64;

// A layer, a pool filled with `context` random tokens, and queries.
struct Layer {
  Layer(std::int64_t context, std::int64_t queries, KvType type, bool shifts)
      : spec{.query_heads = 9, .kv_heads = 3, .key_dim = kDim, .value_dim = kDim, .scale = 0.125F},
        shape{.block_size = kBlock,
              .kv_heads = 3,
              .key_dim = kDim,
              .value_dim = kDim,
              .key_type = type,
              .value_type = type},
        budget(0),
        pool(shape, &budget),
        table({.rotated_dims = kDim, .frequencies = PlainFrequencies(100000.0, kDim)}, kBlock) {
    std::mt19937 generator(1);
    std::normal_distribution<float> normal;
    std::vector<float> plane(static_cast<std::size_t>(kBlock * kDim));
    table.Extend(context / kBlock);
    for (std::int64_t i = 0; i < context / kBlock; ++i) {
      const BlockId block = *pool.Allocate();
      for (std::int64_t head = 0; head < 3; ++head) {
        for (float& x : plane) x = normal(generator);
        CodecFor(type).RewriteKeys(pool.data(block) + shape.key_offset(head), kBlock, kDim,
                                   plane.data());
        CodecFor(type).WriteValues(pool.data(block) + shape.value_offset(head), kBlock, kDim, 0,
                                   kBlock, plane.data(), kDim);
      }
      blocks.push_back({.data = pool.data(block),
                        .shape = &shape,
                        .tokens = kBlock,
                        .shift_blocks = shifts ? i + 1 : 0,
                        .attention = Position{i * kBlock},
                        .logical = Position{i * kBlock}});
    }
    q.resize(static_cast<std::size_t>(queries * 9 * kDim));
    for (float& x : q) x = normal(generator);
    out.resize(q.size());
    mass.resize(static_cast<std::size_t>(context));
    const Position first{context - queries};
    input = {.layer = &spec,
             .block_size = kBlock,
             .rotation = &table,
             .blocks = blocks,
             .queries = queries,
             .first_query_attention = first,
             .first_query_logical = first,
             .q = q.data(),
             .counted_queries = std::min<std::int64_t>(8, queries)};
  }

  AttentionLayerSpec spec;
  BlockShape shape;
  ByteBudget budget;
  BlockPool pool;
  RotationTable table;
  std::vector<AttentionBlock> blocks;
  std::vector<float> q, out, mass;
  AttentionInput input;
};

void BM_Attention(benchmark::State& state) {
  const std::int64_t context = state.range(0);
  const std::int64_t queries = state.range(1);
  const auto type = static_cast<KvType>(state.range(2));
  // Decode goes through as many layers as a model has, so that blocks come from memory as they do
  // there.
  std::vector<std::unique_ptr<Layer>> layers;
  for (int i = 0; i < (queries == 1 ? 30 : 1); ++i)
    layers.push_back(std::make_unique<Layer>(context, queries, type, state.range(3) != 0));
  const Layer& layer = *layers.front();
  PagedAttention attention;
  std::size_t next = 0;
  for (auto _ : state) {
    Layer& current = *layers[next++ % layers.size()];
    attention.Run(current.input, {.out = current.out.data(), .token_mass = current.mass});
    benchmark::ClobberMemory();
  }
  // What is read and multiplied: each query sees on average context - queries / 2 tokens.
  const double seen =
      static_cast<double>(queries) * static_cast<double>(context - (queries - 1) / 2);
  const double bytes =
      static_cast<double>(layer.shape.bytes()) * static_cast<double>(layer.blocks.size());
  state.counters["GB/s"] =
      benchmark::Counter(bytes * 1e-9, benchmark::Counter::kIsIterationInvariantRate);
  state.counters["GFLOP/s"] =
      benchmark::Counter(seen * 9 * kDim * 4 * 1e-9, benchmark::Counter::kIsIterationInvariantRate);
}
BENCHMARK(BM_Attention)
    ->ArgNames({"context", "queries", "kv_type", "shifts"})
    ->ArgsProduct({{512, 4096}, {1}, {0, 1, 2, 3, 4}, {0, 1}})
    ->ArgsProduct({{768, 2048}, {256}, {0, 1, 2, 3, 4}, {0, 1}})
    ->UseRealTime();

// What key rotation rewrites at one eviction of a 512-token cache's layer; query rotation rewrites
// nothing.
void BM_KeyRotation(benchmark::State& state) {
  const auto type = static_cast<KvType>(state.range(0));
  Layer layer(512, 1, type, false);
  std::vector<float> keys(static_cast<std::size_t>(3 * kBlock * kDim));
  const std::int64_t delta = -1;
  for (auto _ : state) {
    for (const AttentionBlock& block : layer.blocks) {
      auto* data = const_cast<std::byte*>(block.data);
      for (std::int64_t head = 0; head < 3; ++head) {
        CodecFor(type).ReadKeys(data + layer.shape.key_offset(head), kBlock, kDim,
                                keys.data() + head * kBlock * kDim);
      }
      float* const planes[] = {keys.data()};
      RotateKeyBlocks(layer.table, KeyLayout::kDimensionMajor, 3, kDim, planes,
                      {.multiples = {&delta, 1}, .columns = 1});
      for (std::int64_t head = 0; head < 3; ++head) {
        CodecFor(type).RewriteKeys(data + layer.shape.key_offset(head), kBlock, kDim,
                                   keys.data() + head * kBlock * kDim);
      }
    }
    benchmark::ClobberMemory();
  }
}
BENCHMARK(BM_KeyRotation)->ArgName("kv_type")->DenseRange(0, 4);

}  // namespace
}  // namespace carousel

BENCHMARK_MAIN();
