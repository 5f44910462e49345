// SPDX-License-Identifier: Apache-2.0
// The two products of attention on one block: queries with its keys, weights with its values. Codes
// are multiplied as they are where few rows read them, and converted once for many.
//
// Per-target include guard, as Highway asks of code that is compiled once per instruction set.
#if defined(CAROUSEL_ATTENTION_BLOCK_PRODUCTS_INL_H_) == defined(HWY_TARGET_TOGGLE)
#ifdef CAROUSEL_ATTENTION_BLOCK_PRODUCTS_INL_H_
#undef CAROUSEL_ATTENTION_BLOCK_PRODUCTS_INL_H_
#else
#define CAROUSEL_ATTENTION_BLOCK_PRODUCTS_INL_H_
#endif

#include <hwy/highway.h>

#include <algorithm>
#include <cstdint>

#include "attention/code_product-inl.h"
#include "attention/paged_attention.h"
#include "attention/row_product-inl.h"
#include "attention/widen_plane-inl.h"
#include "attention/work.h"
#include "base/aligned_buffer.h"
#include "base/check.h"
#include "cache/plane_layout.h"

HWY_BEFORE_NAMESPACE();
namespace carousel {
namespace HWY_NAMESPACE {
namespace hn = hwy::HWY_NAMESPACE;

inline constexpr std::int64_t kOffsetLanes = 8;

// What a thread needs for the work items of one group.
struct ItemScratch {
  AlignedBuffer<float> queries;  // [items, rows, key_dim], as the model rotated them
  AlignedBuffer<float> rotated;  // likewise, for the blocks at hand
  AlignedBuffer<float> scores;   // [items, rows, ScoreStride]
  // Queries or weights with a block's scales multiplied in: [2, rows, key_dim or block_size].
  AlignedBuffer<float> folded;
  AlignedBuffer<float> scales;        // a block's int4 scales and offsets as floats
  AlignedBuffer<float> plane;         // planes as floats, where many rows read them
  AlignedBuffer<float> token_scales;  // of int8 keys in `plane`
  AlignedBuffer<float> offsets;  // [items, 2, rows, kOffsetLanes]: what int4 values' offsets add
  // Queries, [items, rows, EvenCount(key_dim)], or weights, [rows, EvenCount(block_size)], where
  // int8 codes are multiplied by them, and their units: [items, rows].
  AlignedBuffer<std::int16_t> factors;
  AlignedBuffer<float> units;
  AlignedBuffer<float> scaled;  // the queries in their units, not rounded: [items, rows, key_dim]
};

inline void HalvesToFloats(const std::uint16_t* from, std::int64_t count, float* to) {
  WidenRow(reinterpret_cast<const hwy::float16_t*>(from), count, 1.0F, to);
}

// folded = query * scales; returns query . offsets. The inner loop then sees codes alone:
// q . (s c + o) = (q s) . c + q . o.
inline float FoldKeyScales(const float* query, std::int64_t dim, const float* scales,
                           const float* offsets, float* folded) {
  const hn::ScalableTag<float> full;
  const auto lanes = static_cast<std::int64_t>(hn::Lanes(full));
  auto sums = hn::Zero(full);
  std::int64_t i = 0;
  for (; i + lanes <= dim; i += lanes) {
    const auto q = hn::LoadU(full, query + i);
    hn::StoreU(hn::Mul(q, hn::LoadU(full, scales + i)), full, folded + i);
    sums = hn::MulAdd(q, hn::LoadU(full, offsets + i), sums);
  }
  float total = hn::GetLane(hn::SumOfLanes(full, sums));
  for (; i < dim; ++i) {
    folded[i] = query[i] * scales[i];
    total += query[i] * offsets[i];
  }
  return total;
}

// to[row] = weights[row] * scales, over a block's tokens.
inline void FoldTokenScales(const float* weights, std::int64_t stride, std::int64_t rows,
                            std::int64_t tokens, const float* scales, std::int64_t to_stride,
                            float* to) {
  const hn::CappedTag<float, 8> eight;
  const auto lanes = static_cast<std::int64_t>(hn::Lanes(eight));
  for (std::int64_t row = 0; row < rows; ++row, weights += stride, to += to_stride) {
    std::int64_t i = 0;
    for (; i + lanes <= tokens; i += lanes) {
      hn::StoreU(hn::Mul(hn::LoadU(eight, scales + i), hn::LoadU(eight, weights + i)), eight,
                 to + i);
    }
    for (; i < tokens; ++i) to[i] = scales[i] * weights[i];
  }
}

// totals[row] += weights * offsets, lane by lane, over a block's tokens; the lanes are summed when
// all blocks are through.
inline void AddTokenOffsets(const float* weights, std::int64_t stride, std::int64_t rows,
                            std::int64_t tokens, const float* offsets, float* totals) {
  const hn::CappedTag<float, kOffsetLanes> eight;
  const auto lanes = static_cast<std::int64_t>(hn::Lanes(eight));
  for (std::int64_t row = 0; row < rows; ++row, weights += stride, totals += kOffsetLanes) {
    std::int64_t i = 0;
    auto sums = hn::LoadU(eight, totals);
    for (; i + lanes <= tokens; i += lanes) {
      sums = hn::MulAdd(hn::LoadU(eight, offsets + i), hn::LoadU(eight, weights + i), sums);
    }
    hn::StoreU(sums, eight, totals);
    for (; i < tokens; ++i) totals[0] += offsets[i] * weights[i];
  }
}

// multiply(elements) with a plane of one of the types that the inner loop reads as they are: all
// but int4.
template <class Multiply>
inline void WithElements(KvType type, const std::byte* plane, const Multiply& multiply) {
  switch (type) {
    case KvType::kF32:
      return multiply(reinterpret_cast<const float*>(plane));
    case KvType::kF16:
      return multiply(reinterpret_cast<const hwy::float16_t*>(plane));
    case KvType::kBf16:
      return multiply(reinterpret_cast<const hwy::bfloat16_t*>(plane));
    case KvType::kInt8:
      return multiply(reinterpret_cast<const std::int8_t*>(plane));
    case KvType::kInt4:
      break;
  }
  CAROUSEL_CHECK(false);
}

// From so many rows on it pays to convert a plane before it is multiplied, and not once per tile.
inline constexpr std::int64_t kManyRows = 2 * kTileRows;

// Whether `rows` of depth numbers are multiplied with a plane as codes.
inline bool MultipliesCodes(KvType type, std::int64_t rows, std::int64_t depth,
                            std::int64_t columns) {
  return type == KvType::kInt8 && rows < kManyRows && FitsCodeProduct(depth, columns);
}

// The keys of a block, [key_dim, stride], the first block_size of each row; without int8's scales.
inline void WidenKeys(const AttentionInput& input, const BlockShape& shape, const std::byte* plane,
                      const Ahead& ahead, std::int64_t stride, ItemScratch* scratch, float* to) {
  Fetch(ahead, 0, ahead.bytes);
  if (shape.key_type != KvType::kInt4) {
    return WithElements(shape.key_type, plane, [&](const auto* elements) {
      WidenRows(elements, shape.key_dim, input.block_size, nullptr, stride, to);
    });
  }
  float* scales = scratch->scales.data();
  HalvesToFloats(ScalesOfInt4(plane, input.block_size, shape.key_dim), 4 * shape.key_dim, scales);
  const NibbleRows codes{reinterpret_cast<const std::uint8_t*>(plane), input.block_size, {}};
  WidenNibbles(codes, shape.key_dim, scales, shape.key_dim, stride, to);
}

// The values of a block, [block.tokens, value_dim].
inline void WidenValues(const AttentionInput& input, const WorkItem& item,
                        const AttentionBlock& block, const Ahead& ahead, ItemScratch* scratch,
                        float* to) {
  Fetch(ahead, 0, ahead.bytes);
  const BlockShape& shape = *block.shape;
  const std::int64_t dim = shape.value_dim;
  const std::byte* plane = block.data + shape.value_offset(block.first_head + item.kv_head);
  if (shape.value_type != KvType::kInt4) {
    const float* scales =
        shape.value_type == KvType::kInt8 ? ScalesOfInt8(plane, input.block_size, dim) : nullptr;
    return WithElements(shape.value_type, plane, [&](const auto* elements) {
      WidenRows(elements, block.tokens, dim, scales, dim, to);
    });
  }
  float* scales = scratch->scales.data();
  HalvesToFloats(ScalesOfInt4(plane, input.block_size, dim), 4 * input.block_size, scales);
  const NibbleRows codes{reinterpret_cast<const std::uint8_t*>(plane), dim, {}};
  WidenNibbles(codes, block.tokens, scales, input.block_size, dim, to);
}

// An item's queries, [rows, key_dim], as floats and, where the block's codes are multiplied by
// them, rounded.
struct ItemQueries {
  const float* floats;
  FactorRows rounded;
};

// scores[rows, block_size] = queries . the block's keys, for few rows.
inline void ScoreBlock(const AttentionInput& input, const WorkItem& item,
                       const AttentionBlock& block, const ItemQueries& of_item, std::int64_t stride,
                       const Ahead& ahead, float* scores, ItemScratch* scratch) {
  const float* queries = of_item.floats;
  const BlockShape& shape = *block.shape;
  const std::int64_t rows = item.last_row - item.first_row;
  const std::int64_t dim = shape.key_dim;
  const std::byte* plane = block.data + shape.key_offset(block.first_head + item.kv_head);
  LeftRows a{queries, queries, dim};
  ResultRows c{scores, stride, false, nullptr};
  if (shape.key_type == KvType::kInt8) c.column_scale = ScalesOfInt8(plane, input.block_size, dim);
  if (MultipliesCodes(shape.key_type, rows, dim, input.block_size)) {
    const auto* codes = reinterpret_cast<const std::int8_t*>(plane);
    const ElementRows keys{codes, input.block_size, input.block_size, ahead};
    return CodeProduct(of_item.rounded, rows, dim, keys, c);
  }
  if (shape.key_type == KvType::kInt4) {
    float* scales = scratch->scales.data();
    float* folded = scratch->folded.data();  // [2, rows, dim]
    HalvesToFloats(ScalesOfInt4(plane, input.block_size, dim), 4 * dim, scales);
    const std::int64_t half_block = input.block_size / 2;
    for (std::int64_t half = 0; half < 2; ++half) {
      for (std::int64_t row = 0; row < rows; ++row) {
        const float offset =
            FoldKeyScales(queries + row * dim, dim, scales + half * dim, scales + (2 + half) * dim,
                          folded + (half * rows + row) * dim);
        std::fill_n(scores + row * stride + half * half_block, half_block, offset);
      }
    }
    a.first = folded;
    a.second = folded + rows * dim;
    c.accumulate = true;
    const auto* codes = reinterpret_cast<const std::uint8_t*>(plane);
    return RowProduct(a, rows, dim, NibbleRows{codes, input.block_size, ahead}, c);
  }
  WithElements(shape.key_type, plane, [&](const auto* elements) {
    RowProduct(a, rows, dim, ElementRows{elements, input.block_size, input.block_size, ahead}, c);
  });
}

// out[rows, value_dim] += weights . the block's values. What int4 offsets add goes to `offsets`,
// [2, rows, kOffsetLanes]. Slots that were never written may hold anything, NaN too: they are not
// read.
inline void WeighBlock(const AttentionInput& input, const WorkItem& item,
                       const AttentionBlock& block, const float* weights, std::int64_t stride,
                       const Ahead& ahead, float* out, float* offsets, ItemScratch* scratch) {
  const BlockShape& shape = *block.shape;
  const std::int64_t rows = item.last_row - item.first_row;
  const std::int64_t dim = shape.value_dim;
  const std::byte* plane = block.data + shape.value_offset(block.first_head + item.kv_head);
  LeftRows a{weights, weights, stride};
  const ResultRows c{out, dim, true, nullptr};
  float* folded = scratch->folded.data();  // [1 or 2, rows, block_size]
  if (shape.value_type == KvType::kInt4) {
    float* scales = scratch->scales.data();
    HalvesToFloats(ScalesOfInt4(plane, input.block_size, dim), 4 * input.block_size, scales);
    for (std::int64_t half = 0; half < 2; ++half) {
      FoldTokenScales(weights, stride, rows, block.tokens, scales + half * input.block_size,
                      input.block_size, folded + half * rows * input.block_size);
      AddTokenOffsets(weights, stride, rows, block.tokens, scales + (2 + half) * input.block_size,
                      offsets + half * rows * kOffsetLanes);
    }
    a = {folded, folded + rows * input.block_size, input.block_size};
    const auto* codes = reinterpret_cast<const std::uint8_t*>(plane);
    return RowProduct(a, rows, block.tokens, NibbleRows{codes, dim, ahead}, c);
  }
  if (MultipliesCodes(shape.value_type, rows, block.tokens, dim)) {
    const float* scales = ScalesOfInt8(plane, input.block_size, dim);
    const std::int64_t even = EvenCount(block.tokens);
    for (std::int64_t row = 0; row < rows; ++row) {
      const float* from = weights + row * stride;
      const float bound = LargestMagnitude(from, scales, block.tokens);
      scratch->units.data()[row] =
          RoundToFactors(from, scales, block.tokens, bound, scratch->factors.data() + row * even);
    }
    const FactorRows factors{scratch->factors.data(), even, scratch->units.data()};
    const auto* codes = reinterpret_cast<const std::int8_t*>(plane);
    return CodeProduct(factors, rows, block.tokens, ElementRows{codes, dim, dim, ahead}, c);
  }
  if (shape.value_type == KvType::kInt8) {
    FoldTokenScales(weights, stride, rows, block.tokens, ScalesOfInt8(plane, input.block_size, dim),
                    input.block_size, folded);
    a = {folded, folded, input.block_size};
  }
  WithElements(shape.value_type, plane, [&](const auto* elements) {
    RowProduct(a, rows, block.tokens, ElementRows{elements, dim, dim, ahead}, c);
  });
}

// Adds each row's sum of offsets to the half of the dimensions that it belongs to.
inline void AddOffsetTotals(const float* totals, std::int64_t rows, std::int64_t dim, float* out) {
  for (std::int64_t half = 0; half < 2; ++half) {
    for (std::int64_t row = 0; row < rows; ++row, totals += kOffsetLanes) {
      float total = 0.0F;
      for (std::int64_t lane = 0; lane < kOffsetLanes; ++lane) total += totals[lane];
      if (total == 0.0F) continue;
      float* to = out + row * dim + half * (dim / 2);
      for (std::int64_t i = 0; i < dim / 2; ++i) to[i] += total;
    }
  }
}

}  // namespace HWY_NAMESPACE
}  // namespace carousel
HWY_AFTER_NAMESPACE();

#endif  // per-target include guard
