// SPDX-License-Identifier: Apache-2.0
// Google Benchmark over src/measure, for tuning kernels: attention per layer of SmolLM2-135M (9
// query heads, 3 KV heads, head size 64, blocks of 32 tokens) in decode and prompt, for each kind
// of cache, unrotated and with a shift of its own for every block; and one eviction's cost with key
// rotation. `carousel bench attention` compares and explains.
#include <benchmark/benchmark.h>

#include <memory>
#include <vector>

#include "cache/block_codec.h"
#include "measure/our_attention.h"
#include "rope/rotate.h"

namespace carousel {
namespace {

AttentionLoad LoadOf(std::int64_t context, std::int64_t queries) {
  AttentionShape shape = DefaultAttentionShape();
  shape.context = context;
  shape.queries = queries;
  // Decode goes through as many layers as the model has, so that blocks come from memory as they do
  // there.
  if (queries > 1) shape.layers = 1;
  return MakeAttentionLoad(shape, 0);
}

void BM_Attention(benchmark::State& state) {
  const AttentionLoad load = LoadOf(state.range(0), state.range(1));
  const auto caches = std::make_shared<OurCaches>(load, static_cast<KvType>(state.range(2)));
  OurAttention attention(load, caches, state.range(3) != 0 ? kShiftInEveryBlock : kNoShifts);
  for (auto _ : state) {
    attention.Run();
    benchmark::ClobberMemory();
  }
  const auto layers = static_cast<double>(caches->layers());
  const auto rate = benchmark::Counter::kIsIterationInvariantRate;
  const auto bytes = static_cast<double>(caches->bytes_per_layer());
  state.counters["layers/s"] = benchmark::Counter(layers, rate);
  state.counters["GB/s"] = benchmark::Counter(bytes * layers * 1e-9, rate);
  state.counters["GFLOP/s"] = benchmark::Counter(load.shape.FlopsPerLayer() * layers * 1e-9, rate);
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
  const AttentionLoad load = LoadOf(512, 2);
  const OurCaches caches(load, type);
  const BlockShape& shape = caches.shape();
  const auto first = caches.block(0, 0);
  std::vector<std::byte> layer(first, first + caches.bytes_per_layer());
  RotationTable table(
      {.rotated_dims = shape.key_dim, .frequencies = PlainFrequencies(100000.0, shape.key_dim)},
      shape.block_size);
  const std::int64_t delta = -1;
  table.Extend(1);
  const std::int64_t plane = shape.block_size * shape.key_dim;
  std::vector<float> keys(static_cast<std::size_t>(shape.kv_heads * plane));
  for (auto _ : state) {
    for (std::int64_t i = 0; i < caches.blocks_per_layer(); ++i) {
      std::byte* data = layer.data() + i * static_cast<std::int64_t>(shape.bytes());
      for (std::int64_t head = 0; head < shape.kv_heads; ++head) {
        CodecFor(type).ReadKeys(data + shape.key_offset(head), shape.block_size, shape.key_dim,
                                keys.data() + head * plane);
      }
      float* const planes[] = {keys.data()};
      RotateKeyBlocks(table, KeyLayout::kDimensionMajor, shape.kv_heads, shape.key_dim, planes,
                      {.multiples = {&delta, 1}, .columns = 1});
      for (std::int64_t head = 0; head < shape.kv_heads; ++head) {
        CodecFor(type).RewriteKeys(data + shape.key_offset(head), shape.block_size, shape.key_dim,
                                   keys.data() + head * plane);
      }
    }
    benchmark::ClobberMemory();
  }
}
BENCHMARK(BM_KeyRotation)->ArgName("kv_type")->DenseRange(0, 4);

}  // namespace
}  // namespace carousel

BENCHMARK_MAIN();
