// SPDX-License-Identifier: Apache-2.0
// A plane of codes as rows of floats in a core's first-level cache: where many rows multiply a
// plane, it is converted once for all of them.
//
// Per-target include guard, as Highway asks of code that is compiled once per instruction set.
#if defined(CAROUSEL_ATTENTION_WIDEN_PLANE_INL_H_) == defined(HWY_TARGET_TOGGLE)
#ifdef CAROUSEL_ATTENTION_WIDEN_PLANE_INL_H_
#undef CAROUSEL_ATTENTION_WIDEN_PLANE_INL_H_
#else
#define CAROUSEL_ATTENTION_WIDEN_PLANE_INL_H_
#endif

#include <hwy/highway.h>

#include <cstdint>

#include "attention/row_product-inl.h"

HWY_BEFORE_NAMESPACE();
namespace carousel {
namespace HWY_NAMESPACE {
namespace hn = hwy::HWY_NAMESPACE;

// to[count] = from[count] * scale.
template <class Element>
void WidenRow(const Element* from, std::int64_t count, float scale, float* to) {
  const hn::ScalableTag<float> full;
  const hn::CappedTag<float, 1> one;
  const auto lanes = static_cast<std::int64_t>(hn::Lanes(full));
  std::int64_t i = 0;
  for (; i + lanes <= count; i += lanes)
    hn::StoreU(hn::Mul(LoadElements(full, from + i), hn::Set(full, scale)), full, to + i);
  for (; i < count; ++i)
    hn::StoreU(hn::Mul(LoadElements(one, from + i), hn::Set(one, scale)), one, to + i);
}

// to[depth, stride], the first `columns` of each row, = from[depth, columns]; row k times
// row_scales[k] unless that is null.
template <class Element>
void WidenRows(const Element* from, std::int64_t depth, std::int64_t columns,
               const float* row_scales, std::int64_t stride, float* to) {
  for (std::int64_t k = 0; k < depth; ++k)
    WidenRow(from + k * columns, columns, row_scales == nullptr ? 1.0F : row_scales[k],
             to + k * stride);
}

// Half a row of int4 codes and its other half, each with a scale and an offset.
template <class D>
HWY_INLINE void WidenNibblePair(D d, const NibbleRows& rows, std::int64_t k, std::int64_t column,
                                const float* scales, const float* offsets, float* to) {
  hn::Vec<D> first;
  hn::Vec<D> second;
  rows.LoadPair(d, k, column, first, second);
  hn::StoreU(hn::MulAdd(first, hn::Set(d, scales[0]), hn::Set(d, offsets[0])), d, to + column);
  hn::StoreU(hn::MulAdd(second, hn::Set(d, scales[1]), hn::Set(d, offsets[1])), d,
             to + column + rows.columns / 2);
}

// to[depth, stride], the first rows.columns of each row, of int4 codes. `scales` are [2,
// scales_stride], row k's at [0, k] and [1, k] for its halves, and offsets likewise behind them.
inline void WidenNibbles(const NibbleRows& rows, std::int64_t depth, const float* scales,
                         std::int64_t scales_stride, std::int64_t stride, float* to) {
  const hn::ScalableTag<float> full;
  const hn::CappedTag<float, 1> one;
  const auto lanes = static_cast<std::int64_t>(hn::Lanes(full));
  for (std::int64_t k = 0; k < depth; ++k, to += stride) {
    const float of_row[2] = {scales[k], scales[scales_stride + k]};
    const float offsets[2] = {scales[2 * scales_stride + k], scales[3 * scales_stride + k]};
    std::int64_t column = 0;
    for (; column + lanes <= rows.columns / 2; column += lanes)
      WidenNibblePair(full, rows, k, column, of_row, offsets, to);
    for (; column < rows.columns / 2; ++column)
      WidenNibblePair(one, rows, k, column, of_row, offsets, to);
  }
}

}  // namespace HWY_NAMESPACE
}  // namespace carousel
HWY_AFTER_NAMESPACE();

#endif  // per-target include guard
