// SPDX-License-Identifier: Apache-2.0
// Queries as CodeProduct wants them, turned to where a block stands: rounded to 16 bits, in units
// that are settled before the first block. A rotation keeps the length of a pair, so the largest
// number of a query bounds it however it is turned.
//
// Per-target include guard, as Highway asks of code that is compiled once per instruction set.
#if defined(CAROUSEL_ATTENTION_QUERY_FACTORS_INL_H_) == defined(HWY_TARGET_TOGGLE)
#ifdef CAROUSEL_ATTENTION_QUERY_FACTORS_INL_H_
#undef CAROUSEL_ATTENTION_QUERY_FACTORS_INL_H_
#else
#define CAROUSEL_ATTENTION_QUERY_FACTORS_INL_H_
#endif

#include <hwy/highway.h>

#include <cstdint>

#include "attention/code_product-inl.h"
#include "rope/rotate-inl.h"

HWY_BEFORE_NAMESPACE();
namespace carousel {
namespace HWY_NAMESPACE {
namespace hn = hwy::HWY_NAMESPACE;

// Rows of queries, [rows, dim], in units: scaled = query / unit, at most kLargestFactor however
// they are turned.
inline void ScaleToUnits(const float* queries, std::int64_t rows, std::int64_t dim, float* scaled,
                         float* units) {
  constexpr float kRootOfTwo = 1.41421365F;  // rounded up
  for (std::int64_t row = 0; row < rows; ++row, queries += dim, scaled += dim) {
    const float bound = kRootOfTwo * LargestMagnitude(queries, nullptr, dim);
    const float inverse = bound > 0.0F ? kLargestFactor / bound : 0.0F;
    for (std::int64_t i = 0; i < dim; ++i) scaled[i] = queries[i] * inverse;
    units[row] = bound / kLargestFactor;
  }
}

// Whether whole vectors of pairs make up a row.
inline bool RotatesWholeVectors(const LayerRope& rope, std::int64_t dim) {
  const auto lanes = static_cast<std::int64_t>(hn::Lanes(hn::ScalableTag<float>()));
  return rope.pairing == Pairing::kHalves && rope.rotated_dims == dim && dim % (2 * lanes) == 0;
}

// factors[rows, dim] = the rows turned, then rounded, without a stop in memory.
inline void RotateToFactors(const RotationRow& angles, const float* scaled, std::int64_t rows,
                            std::int64_t dim, std::int16_t* factors) {
  const hn::ScalableTag<float> full;
  const hn::Rebind<std::int16_t, hn::ScalableTag<float>> half;
  const auto lanes = static_cast<std::int64_t>(hn::Lanes(full));
  const std::int64_t pairs = dim / 2;
  for (std::int64_t pair = 0; pair < pairs; pair += lanes) {
    const auto cos = hn::LoadU(full, angles.cos.data() + pair);
    const auto sin = hn::LoadU(full, angles.sin.data() + pair);
    for (std::int64_t row = 0; row < rows; ++row) {
      auto x = hn::LoadU(full, scaled + row * dim + pair);
      auto y = hn::LoadU(full, scaled + row * dim + pairs + pair);
      RotatePair(cos, sin, x, y);
      std::int16_t* to = factors + row * dim + pair;
      hn::StoreU(hn::DemoteTo(half, hn::NearestInt(x)), half, to);
      hn::StoreU(hn::DemoteTo(half, hn::NearestInt(y)), half, to + pairs);
    }
  }
}

// factors[rows, EvenCount(dim)] = the rows, turned by `shift_blocks` of `rotation` unless that is 0
// or null, and rounded. `rotated`, [rows, dim], is scratch.
inline void RoundQueries(const RotationTable* rotation, std::int64_t shift_blocks,
                         const float* scaled, std::int64_t rows, std::int64_t dim, float* rotated,
                         std::int16_t* factors) {
  if (rotation != nullptr && shift_blocks != 0) {
    const RotationRow angles = rotation->row(shift_blocks);
    if (RotatesWholeVectors(rotation->rope(), dim))
      return RotateToFactors(angles, scaled, rows, dim, factors);
    RotateRowsInl(rotation->rope(), angles, dim, rows, scaled, rotated);
    scaled = rotated;
  }
  // In units already.
  for (std::int64_t row = 0; row < rows; ++row)
    RoundToFactors(scaled + row * dim, nullptr, dim, kLargestFactor,
                   factors + row * EvenCount(dim));
}

}  // namespace HWY_NAMESPACE
}  // namespace carousel
HWY_AFTER_NAMESPACE();

#endif  // per-target include guard
