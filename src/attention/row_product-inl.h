// SPDX-License-Identifier: Apache-2.0
// The one inner loop of attention: C (+)= A B with a small A, for both q K^T (keys are
// dimension-major) and p V. B is read as it is stored and converted in registers.
//
// Per-target include guard, as Highway asks of code that is compiled once per instruction set.
#if defined(CAROUSEL_ATTENTION_ROW_PRODUCT_INL_H_) == defined(HWY_TARGET_TOGGLE)
#ifdef CAROUSEL_ATTENTION_ROW_PRODUCT_INL_H_
#undef CAROUSEL_ATTENTION_ROW_PRODUCT_INL_H_
#else
#define CAROUSEL_ATTENTION_ROW_PRODUCT_INL_H_
#endif

#include <hwy/highway.h>

#include <algorithm>
#include <cstdint>

HWY_BEFORE_NAMESPACE();
namespace carousel {
namespace HWY_NAMESPACE {
namespace hn = hwy::HWY_NAMESPACE;

// Rows of A whose sums are held in registers at once: rows * kWideVectors accumulators, plus B and
// a broadcast, must fit 32 registers on AVX-512 and 16 below.
inline constexpr int kTileRows = HWY_MAX_BYTES >= 64 ? 8 : 6;
inline constexpr int kWideVectors = 2;

template <class D>
HWY_INLINE hn::Vec<D> LoadElements(D d, const float* from) {
  return hn::LoadU(d, from);
}
template <class D>
HWY_INLINE hn::Vec<D> LoadElements(D d, const hwy::float16_t* from) {
  return hn::PromoteTo(d, hn::LoadU(hn::Rebind<hwy::float16_t, D>(), from));
}

// C[kRows, kVectors * lanes] (+)= A[kRows, depth] B[depth, kVectors * lanes].
template <int kRows, int kVectors, class D, class Element>
HWY_INLINE void MultiplyTile(D d, const float* HWY_RESTRICT a, std::int64_t a_stride,
                             std::int64_t depth, const Element* HWY_RESTRICT b,
                             std::int64_t b_stride, float* HWY_RESTRICT c, std::int64_t c_stride,
                             bool accumulate) {
  const auto lanes = static_cast<std::int64_t>(hn::Lanes(d));
  hn::Vec<D> sums[kRows][kVectors];
#pragma GCC unroll 8
  for (int row = 0; row < kRows; ++row) {
#pragma GCC unroll 2
    for (int v = 0; v < kVectors; ++v) {
      sums[row][v] = accumulate ? hn::LoadU(d, c + row * c_stride + v * lanes) : hn::Zero(d);
    }
  }
  for (std::int64_t k = 0; k < depth; ++k) {
    hn::Vec<D> columns[kVectors];
#pragma GCC unroll 2
    for (int v = 0; v < kVectors; ++v) columns[v] = LoadElements(d, b + k * b_stride + v * lanes);
#pragma GCC unroll 8
    for (int row = 0; row < kRows; ++row) {
      const auto factor = hn::Set(d, a[row * a_stride + k]);
#pragma GCC unroll 2
      for (int v = 0; v < kVectors; ++v)
        sums[row][v] = hn::MulAdd(factor, columns[v], sums[row][v]);
    }
  }
#pragma GCC unroll 8
  for (int row = 0; row < kRows; ++row) {
#pragma GCC unroll 2
    for (int v = 0; v < kVectors; ++v) hn::StoreU(sums[row][v], d, c + row * c_stride + v * lanes);
  }
}

// Chooses the number of rows at run time: 1 <= rows <= kRows.
template <int kRows, int kVectors, class D, class Element>
HWY_INLINE void MultiplyRows(D d, std::int64_t rows, const float* a, std::int64_t a_stride,
                             std::int64_t depth, const Element* b, std::int64_t b_stride, float* c,
                             std::int64_t c_stride, bool accumulate) {
  if (rows == kRows) {
    MultiplyTile<kRows, kVectors>(d, a, a_stride, depth, b, b_stride, c, c_stride, accumulate);
  } else if constexpr (kRows > 1) {
    MultiplyRows<kRows - 1, kVectors>(d, rows, a, a_stride, depth, b, b_stride, c, c_stride,
                                      accumulate);
  }
}

// C[rows, columns] = A[rows, depth] B[depth, columns], or += when accumulate. Any sizes; strides in
// elements.
template <class Element>
HWY_NOINLINE void RowProduct(const float* a, std::int64_t a_stride, std::int64_t rows,
                             std::int64_t depth, const Element* b, std::int64_t b_stride,
                             std::int64_t columns, float* c, std::int64_t c_stride,
                             bool accumulate) {
  const hn::ScalableTag<float> full;
  const hn::CappedTag<float, 8> eight;
  const hn::CappedTag<float, 1> one;
  const auto lanes = static_cast<std::int64_t>(hn::Lanes(full));
  const auto eight_lanes = static_cast<std::int64_t>(hn::Lanes(eight));
  for (std::int64_t row = 0; row < rows; row += kTileRows) {
    const std::int64_t count = std::min<std::int64_t>(kTileRows, rows - row);
    const float* a_rows = a + row * a_stride;
    float* c_rows = c + row * c_stride;
    std::int64_t column = 0;
    for (; column + kWideVectors * lanes <= columns; column += kWideVectors * lanes) {
      MultiplyRows<kTileRows, kWideVectors>(full, count, a_rows, a_stride, depth, b + column,
                                            b_stride, c_rows + column, c_stride, accumulate);
    }
    for (; column + eight_lanes <= columns; column += eight_lanes) {
      MultiplyRows<kTileRows, 1>(eight, count, a_rows, a_stride, depth, b + column, b_stride,
                                 c_rows + column, c_stride, accumulate);
    }
    for (; column < columns; ++column) {
      MultiplyRows<kTileRows, 1>(one, count, a_rows, a_stride, depth, b + column, b_stride,
                                 c_rows + column, c_stride, accumulate);
    }
  }
}

}  // namespace HWY_NAMESPACE
}  // namespace carousel
HWY_AFTER_NAMESPACE();

#endif  // per-target include guard
