// SPDX-License-Identifier: Apache-2.0
// Keys dimension-major, as the cache has them, against token-major: the scores of one KV head's
// blocks of 32 tokens of 64 (all in the second-level cache, one thread), and the writing of one
// token's key. The token-major kernel lives here alone: docs/decisions/0001 says why.
#include <benchmark/benchmark.h>

#include <cmath>
#include <random>
#include <vector>

#include "cache/block_codec.h"

#undef HWY_TARGET_INCLUDE
#define HWY_TARGET_INCLUDE "key_layouts_bench.cc"
#include <hwy/foreach_target.h>
// Highway's own headers come after foreach_target.
#include <hwy/highway.h>

#include "attention/row_product-inl.h"

HWY_BEFORE_NAMESPACE();
namespace carousel {
namespace HWY_NAMESPACE {

inline constexpr std::int64_t kBlock = 32;
inline constexpr std::int64_t kDim = 64;

// Element i of the result is the sum of vector i's lanes, for as many vectors as there are lanes.
template <int kCount, class D>
HWY_INLINE hn::Vec<D> SumsOfLanes([[maybe_unused]] D d, const hn::Vec<D>* vectors) {
#if HWY_TARGET == HWY_SCALAR
  return vectors[0];
#else
  if constexpr (kCount == 1) {
    return vectors[0];
  } else {
    const auto low = SumsOfLanes<kCount / 2>(d, vectors);
    const auto high = SumsOfLanes<kCount / 2>(d, vectors + kCount / 2);
    return hn::Add(hn::ConcatEven(d, high, low), hn::ConcatOdd(d, high, low));
  }
#endif
}

// scores[kRows, kBlock] of keys [kBlock, kDim]; `stride` between rows of scores.
template <int kRows, class Element>
HWY_INLINE void TokenMajorRows(const float* queries, const Element* keys, float* scores,
                               std::int64_t stride) {
  const hn::ScalableTag<float> d;
  constexpr int kLanes = static_cast<int>(hn::MaxLanes(d));
  for (std::int64_t token = 0; token < kBlock; token += kLanes) {
    hn::Vec<decltype(d)> sums[kRows][kLanes];
    for (int t = 0; t < kLanes; ++t) {
      const Element* key = keys + (token + t) * kDim;
#pragma GCC unroll 8
      for (int row = 0; row < kRows; ++row) sums[row][t] = hn::Zero(d);
#pragma GCC unroll 8
      for (std::int64_t i = 0; i < kDim; i += kLanes) {
        const auto values = LoadElements(d, key + i);
#pragma GCC unroll 8
        for (int row = 0; row < kRows; ++row)
          sums[row][t] = hn::MulAdd(values, hn::LoadU(d, queries + row * kDim + i), sums[row][t]);
      }
    }
    for (int row = 0; row < kRows; ++row)
      hn::StoreU(SumsOfLanes<kLanes>(d, sums[row]), d, scores + row * stride + token);
  }
}

template <class Element>
void TokenMajor(const float* queries, std::int64_t rows, const Element* keys, std::int64_t blocks,
                float* scores) {
  for (std::int64_t b = 0; b < blocks; ++b, keys += kBlock * kDim) {
    for (std::int64_t row = 0; row < rows; row += 3)
      TokenMajorRows<3>(queries + row * kDim, keys, scores + row * blocks * kBlock + b * kBlock,
                        blocks * kBlock);
  }
}

template <class Element>
void DimensionMajor(const float* queries, std::int64_t rows, const Element* keys,
                    std::int64_t blocks, float* scores) {
  for (std::int64_t b = 0; b < blocks; ++b, keys += kBlock * kDim) {
    RowProduct(LeftRows{queries, queries, kDim}, rows, kDim, ElementRows{keys, kBlock, kBlock, {}},
               ResultRows{scores + b * kBlock, blocks * kBlock, false, nullptr});
  }
}

void TokenMajorHalves(const float* queries, std::int64_t rows, const void* keys,
                      std::int64_t blocks, float* scores) {
  TokenMajor(queries, rows, static_cast<const hwy::float16_t*>(keys), blocks, scores);
}
void TokenMajorInt8(const float* queries, std::int64_t rows, const void* keys, std::int64_t blocks,
                    float* scores) {
  TokenMajor(queries, rows, static_cast<const std::int8_t*>(keys), blocks, scores);
}
void DimensionMajorHalves(const float* queries, std::int64_t rows, const void* keys,
                          std::int64_t blocks, float* scores) {
  DimensionMajor(queries, rows, static_cast<const hwy::float16_t*>(keys), blocks, scores);
}
void DimensionMajorInt8(const float* queries, std::int64_t rows, const void* keys,
                        std::int64_t blocks, float* scores) {
  DimensionMajor(queries, rows, static_cast<const std::int8_t*>(keys), blocks, scores);
}

}  // namespace HWY_NAMESPACE
}  // namespace carousel
HWY_AFTER_NAMESPACE();

#if HWY_ONCE
namespace carousel {

HWY_EXPORT(TokenMajorHalves);
HWY_EXPORT(TokenMajorInt8);
HWY_EXPORT(DimensionMajorHalves);
HWY_EXPORT(DimensionMajorInt8);

namespace {

constexpr std::int64_t kBlocks = 64;
constexpr std::int64_t kKeyDim = 64;
constexpr std::int64_t kBlockTokens = 32;

void BM_Scores(benchmark::State& state) {
  const std::int64_t rows = state.range(0);
  const bool is_int8 = state.range(1) != 0;
  const bool is_token_major = state.range(2) != 0;
  std::mt19937 generator(1);
  std::normal_distribution<float> normal;
  std::vector<float> queries(static_cast<std::size_t>(rows * kKeyDim));
  for (float& x : queries) x = normal(generator);
  const std::int64_t count = kBlocks * kBlockTokens * kKeyDim;
  std::vector<float> numbers(static_cast<std::size_t>(count));
  for (float& x : numbers) x = normal(generator);
  std::vector<std::uint16_t> halves(numbers.size());
  FloatToHalf(numbers.data(), halves.data(), count);
  std::vector<std::int8_t> codes(numbers.size());
  for (std::size_t i = 0; i < codes.size(); ++i)
    codes[i] = static_cast<std::int8_t>(std::lround(numbers[i] * 20.0F));
  const void* keys = is_int8 ? static_cast<const void*>(codes.data()) : halves.data();
  std::vector<float> scores(static_cast<std::size_t>(rows * kBlocks * kBlockTokens));
  const auto run = is_token_major ? (is_int8 ? HWY_DYNAMIC_DISPATCH(TokenMajorInt8)
                                             : HWY_DYNAMIC_DISPATCH(TokenMajorHalves))
                                  : (is_int8 ? HWY_DYNAMIC_DISPATCH(DimensionMajorInt8)
                                             : HWY_DYNAMIC_DISPATCH(DimensionMajorHalves));
  for (auto _ : state) {
    run(queries.data(), rows, keys, kBlocks, scores.data());
    benchmark::ClobberMemory();
  }
}
BENCHMARK(BM_Scores)
    ->ArgNames({"rows", "int8", "token_major"})
    ->ArgsProduct({{3, 48}, {0, 1}, {0, 1}});

// One token's key of one head to its place in a block of f16.
void BM_Append(benchmark::State& state) {
  const bool is_token_major = state.range(0) != 0;
  std::vector<float> key(kKeyDim, 0.5F);
  std::vector<std::uint16_t> block(kBlockTokens * kKeyDim);
  std::int64_t slot = 0;
  for (auto _ : state) {
    if (is_token_major) {
      FloatToHalf(key.data(), block.data() + slot * kKeyDim, kKeyDim);
    } else {
      CodecFor(KvType::kF16)
          .WriteKeys(reinterpret_cast<std::byte*>(block.data()), kBlockTokens, kKeyDim, slot, 1,
                     key.data(), kKeyDim);
    }
    slot = (slot + 1) % kBlockTokens;
    benchmark::ClobberMemory();
  }
}
BENCHMARK(BM_Append)->ArgName("token_major")->Arg(0)->Arg(1);

}  // namespace
}  // namespace carousel

BENCHMARK_MAIN();
#endif
