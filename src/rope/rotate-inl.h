// SPDX-License-Identifier: Apache-2.0
// The rotation of vectors as Highway code, for every translation unit that wants it inlined into
// a dispatched kernel of its own (rotate.cc and attention). Include it after hwy/foreach_target.h,
// between "hwy/highway.h" and HWY_BEFORE_NAMESPACE(); call
// carousel::HWY_NAMESPACE::RotateRowsInl.

// Included once per target: the guard flips with HWY_TARGET_TOGGLE.
#if defined(CAROUSEL_ROPE_ROTATE_INL_H_) == defined(HWY_TARGET_TOGGLE)
#ifdef CAROUSEL_ROPE_ROTATE_INL_H_
#undef CAROUSEL_ROPE_ROTATE_INL_H_
#else
#define CAROUSEL_ROPE_ROTATE_INL_H_
#endif

#include <cstddef>
#include <cstdint>
#include <cstring>

#include "hwy/highway.h"
#include "rope/rope_spec.h"
#include "rope/rotation_table.h"

HWY_BEFORE_NAMESPACE();
namespace carousel {
namespace HWY_NAMESPACE {

namespace hn = hwy::HWY_NAMESPACE;

// (x, y) <- (x cos - y sin, x sin + y cos), lane by lane.
template <class V>
HWY_INLINE void RotatePair(V cos, V sin, V& x, V& y) {
  const V rotated_x = hn::NegMulAdd(y, sin, hn::Mul(x, cos));
  y = hn::MulAdd(x, sin, hn::Mul(y, cos));
  x = rotated_x;
}

// Pairs [pair, pairs) of many vectors as far as whole vectors of `d` reach, with each angle loaded
// once; returns the first pair not done. from and to: [rows, stride].
template <bool kHalves, class D>
HWY_INLINE std::size_t RotateRowPairs(D d, std::size_t pair, std::size_t pairs, const float* cos,
                                      const float* sin, std::size_t rows, std::size_t stride,
                                      const float* from, float* to) {
  const std::size_t lanes = hn::Lanes(d);
  for (; pair + lanes <= pairs; pair += lanes) {
    const auto c = hn::LoadU(d, cos + pair);
    const auto s = hn::LoadU(d, sin + pair);
    for (std::size_t row = 0; row < rows; ++row) {
      const float* row_from = from + row * stride;
      float* row_to = to + row * stride;
      hn::Vec<D> x;
      hn::Vec<D> y;
      if constexpr (kHalves) {
        x = hn::LoadU(d, row_from + pair);
        y = hn::LoadU(d, row_from + pairs + pair);
        RotatePair(c, s, x, y);
        hn::StoreU(x, d, row_to + pair);
        hn::StoreU(y, d, row_to + pairs + pair);
      } else {
        hn::LoadInterleaved2(d, row_from + 2 * pair, x, y);
        RotatePair(c, s, x, y);
        hn::StoreInterleaved2(x, y, d, row_to + 2 * pair);
      }
    }
  }
  return pair;
}

template <bool kHalves>
HWY_INLINE void RotateRowsOf(std::size_t pairs, const RotationRow& row, std::size_t rows,
                             std::size_t stride, const float* from, float* to) {
  const hn::ScalableTag<float> native;
  const hn::CappedTag<float, 4> four;
  const hn::CappedTag<float, 1> one;
  const float* cos = row.cos.data();
  const float* sin = row.sin.data();
  std::size_t pair = RotateRowPairs<kHalves>(native, 0, pairs, cos, sin, rows, stride, from, to);
  pair = RotateRowPairs<kHalves>(four, pair, pairs, cos, sin, rows, stride, from, to);
  RotateRowPairs<kHalves>(one, pair, pairs, cos, sin, rows, stride, from, to);
}

// RotateVector in rotate.h on each row of from, [rows, head_dim]. `to` is `from` or lies elsewhere.
// Any number of pairs: the native width first, then four lanes, then one, all by the same code, so
// that a tail rounds as the rest does.
HWY_INLINE void RotateRowsInl(const LayerRope& rope, const RotationRow& row, std::int64_t head_dim,
                              std::int64_t rows, const float* from, float* to) {
  const auto first = static_cast<std::size_t>(rope.first_dim);
  const auto rotated = static_cast<std::size_t>(rope.rotated_dims);
  const auto stride = static_cast<std::size_t>(head_dim);
  const auto count = static_cast<std::size_t>(rows);
  if (from != to && rotated < stride) std::memcpy(to, from, count * stride * sizeof(float));
  if (rope.pairing == Pairing::kHalves) {
    RotateRowsOf<true>(rotated / 2, row, count, stride, from + first, to + first);
  } else {
    RotateRowsOf<false>(rotated / 2, row, count, stride, from + first, to + first);
  }
}

// Rotates (x[column], y[column]) for columns as far as whole vectors of `d` reach; returns the
// first not done.
template <class D>
HWY_INLINE std::size_t RotateColumnPairs(D d, std::size_t column, std::size_t columns, float cos,
                                         float sin, float* x, float* y) {
  const std::size_t lanes = hn::Lanes(d);
  const auto cosines = hn::Set(d, cos);
  const auto sines = hn::Set(d, sin);
  for (; column + lanes <= columns; column += lanes) {
    auto vector_x = hn::LoadU(d, x + column);
    auto vector_y = hn::LoadU(d, y + column);
    RotatePair(cosines, sines, vector_x, vector_y);
    hn::StoreU(vector_x, d, x + column);
    hn::StoreU(vector_y, d, y + column);
  }
  return column;
}

// RotateVector in rotate.h on each column of vectors, [head_dim, stride], in place: one angle per
// pair of rows.
HWY_INLINE void RotateColumnsInl(const LayerRope& rope, const RotationRow& row,
                                 std::int64_t columns, std::int64_t stride, float* vectors) {
  const hn::ScalableTag<float> native;
  const hn::CappedTag<float, 4> four;
  const hn::CappedTag<float, 1> one;
  const std::int64_t pairs = rope.rotated_dims / 2;
  const bool halves = rope.pairing == Pairing::kHalves;
  const auto last = static_cast<std::size_t>(columns);
  for (std::int64_t pair = 0; pair < pairs; ++pair) {
    const std::int64_t dim_x = rope.first_dim + (halves ? pair : 2 * pair);
    const std::int64_t dim_y = dim_x + (halves ? pairs : 1);
    float* x = vectors + dim_x * stride;
    float* y = vectors + dim_y * stride;
    const float cos = row.cos[static_cast<std::size_t>(pair)];
    const float sin = row.sin[static_cast<std::size_t>(pair)];
    std::size_t column = RotateColumnPairs(native, 0, last, cos, sin, x, y);
    column = RotateColumnPairs(four, column, last, cos, sin, x, y);
    RotateColumnPairs(one, column, last, cos, sin, x, y);
  }
}

// NOLINTNEXTLINE(google-readability-namespace-comments)
}  // namespace HWY_NAMESPACE
}  // namespace carousel
HWY_AFTER_NAMESPACE();

#endif  // CAROUSEL_ROPE_ROTATE_INL_H_
