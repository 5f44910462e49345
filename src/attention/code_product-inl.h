// SPDX-License-Identifier: Apache-2.0
// The inner loop for int8 codes and few rows: C (+)= A B as row_product-inl.h has it, but A is
// rounded to 16 bits and products are summed as integers, two at a time, so that a code is not
// turned into a float first. A row of A is rounded to 1/32767 of a bound on its largest number,
// that is a hundred times finer than the codes are.
//
// Per-target include guard, as Highway asks of code that is compiled once per instruction set.
#if defined(CAROUSEL_ATTENTION_CODE_PRODUCT_INL_H_) == defined(HWY_TARGET_TOGGLE)
#ifdef CAROUSEL_ATTENTION_CODE_PRODUCT_INL_H_
#undef CAROUSEL_ATTENTION_CODE_PRODUCT_INL_H_
#else
#define CAROUSEL_ATTENTION_CODE_PRODUCT_INL_H_
#endif

#include <hwy/highway.h>

#include <algorithm>
#include <cmath>
#include <cstdint>
#include <cstring>
#include <utility>

#include "attention/row_product-inl.h"
#include "base/check.h"

HWY_BEFORE_NAMESPACE();
namespace carousel {
namespace HWY_NAMESPACE {
namespace hn = hwy::HWY_NAMESPACE;

// x86's vectors add neighbouring products of 16-bit numbers; which products are added elsewhere,
// Highway leaves open.
#undef CAROUSEL_HAS_CODE_PRODUCT
#if HWY_ARCH_X86 && HWY_TARGET != HWY_SCALAR && HWY_TARGET != HWY_EMU128
#define CAROUSEL_HAS_CODE_PRODUCT 1
#else
#define CAROUSEL_HAS_CODE_PRODUCT 0
#endif
// Rows whose sums are held in registers at once.
inline constexpr int kCodeRows = HWY_MAX_BYTES >= 64 ? 8 : 4;
inline constexpr float kLargestFactor = 32767.0F;
// Sums of so many products of a factor and a code cannot overflow 32 bits.
inline constexpr std::int64_t kMostCodeDepth = 512;

constexpr std::int64_t EvenCount(std::int64_t count) { return (count + 1) / 2 * 2; }

// A, [rows, depth], as integers times a unit for each row.
struct FactorRows {
  const std::int16_t* factors;  // [rows, stride]; 0 behind an odd depth
  std::int64_t stride;          // even
  const float* units;           // [rows]

  FactorRows Below(std::int64_t rows) const {
    return {factors + rows * stride, stride, units + rows};
  }
};

// Whether CodeProduct multiplies rows of so many codes.
inline bool FitsCodeProduct(std::int64_t depth, std::int64_t columns) {
  if (!CAROUSEL_HAS_CODE_PRODUCT) return false;
  const auto pair = 2 * static_cast<std::int64_t>(hn::Lanes(hn::ScalableTag<float>()));
  return columns % pair == 0 && depth <= kMostCodeDepth;
}

// to[depth] = row * scales in units of bound / 32767, with a zero behind an odd depth; `scales` may
// be null. Returns the unit. No product is larger than `bound`; a NaN becomes some number.
inline float RoundToFactors(const float* row, const float* scales, std::int64_t depth, float bound,
                            std::int16_t* to) {
  const hn::ScalableTag<float> full;
  const hn::Rebind<std::int16_t, hn::ScalableTag<float>> half;
  const auto lanes = static_cast<std::int64_t>(hn::Lanes(full));
  const float inverse = bound > 0.0F ? kLargestFactor / bound : 0.0F;
  const auto inverses = hn::Set(full, inverse);
  std::int64_t i = 0;
  for (; i + lanes <= depth; i += lanes) {
    auto product = hn::Mul(hn::LoadU(full, row + i), inverses);
    if (scales != nullptr) product = hn::Mul(product, hn::LoadU(full, scales + i));
    hn::StoreU(hn::DemoteTo(half, hn::NearestInt(product)), half, to + i);
  }
  for (; i < depth; ++i) {
    const float product = row[i] * inverse * (scales != nullptr ? scales[i] : 1.0F);
    // Written so that a NaN becomes a number.
    const float limited =
        product < kLargestFactor ? std::max(product, -kLargestFactor) : kLargestFactor;
    to[i] = static_cast<std::int16_t>(std::nearbyint(limited));
  }
  if (depth % 2 != 0) to[depth] = 0;
  return bound / kLargestFactor;
}

// The largest magnitude of row[depth] * scales; `scales` may be null.
inline float LargestMagnitude(const float* row, const float* scales, std::int64_t depth) {
  const hn::ScalableTag<float> full;
  const auto lanes = static_cast<std::int64_t>(hn::Lanes(full));
  auto largest_lanes = hn::Zero(full);
  std::int64_t i = 0;
  for (; i + lanes <= depth; i += lanes) {
    auto product = hn::LoadU(full, row + i);
    if (scales != nullptr) product = hn::Mul(product, hn::LoadU(full, scales + i));
    largest_lanes = hn::Max(largest_lanes, hn::Abs(product));
  }
  float largest = hn::GetLane(hn::MaxOfLanes(full, largest_lanes));
  for (; i < depth; ++i)
    largest = std::max(largest, std::abs(row[i] * (scales != nullptr ? scales[i] : 1.0F)));
  return largest;
}

#if CAROUSEL_HAS_CODE_PRODUCT

// Two neighbouring factors, as the multiplication wants them in each lane.
HWY_INLINE std::int32_t FactorPair(const std::int16_t* factors) {
  std::int32_t pair;
  std::memcpy(&pair, factors, sizeof(pair));
  return pair;
}

// Two rows of B for two vectors of columns: 16-bit codes, those of a column side by side. With
// vectors of 64 bytes the columns are not in order: first holds quarters 0 and 2, second 1 and 3.
template <class D16>
HWY_INLINE void LoadCodePairs(D16 d16, const std::int8_t* row, const std::int8_t* next,
                              hn::Vec<D16>& first, hn::Vec<D16>& second) {
  const hn::Rebind<std::int8_t, D16> d8;
  const auto a = hn::LoadU(d8, row);
  const auto b = hn::LoadU(d8, next);
  first = hn::PromoteTo(d16, hn::InterleaveLower(d8, a, b));
  second = hn::PromoteTo(d16, hn::InterleaveUpper(d8, a, b));
}

// Stores a row's sums of two vectors of columns, as C wants them.
template <class D32>
HWY_INLINE void StoreCodeSums(D32 d32, hn::Vec<D32> first, hn::Vec<D32> second, float unit,
                              std::int64_t column, const ResultRows& c, float* to) {
  const hn::Rebind<float, D32> d;
  auto low = first;
  auto high = second;
  if constexpr (HWY_MAX_BYTES >= 64) {
    low = hn::ConcatLowerLower(d32, second, first);
    high = hn::ConcatUpperUpper(d32, second, first);
  }
  const auto units = hn::Set(d, unit);
  const auto lanes = static_cast<std::int64_t>(hn::Lanes(d));
  auto low_sum = hn::Mul(hn::ConvertTo(d, low), units);
  auto high_sum = hn::Mul(hn::ConvertTo(d, high), units);
  if (c.column_scale != nullptr) {
    low_sum = hn::Mul(low_sum, hn::LoadU(d, c.column_scale + column));
    high_sum = hn::Mul(high_sum, hn::LoadU(d, c.column_scale + column + lanes));
  }
  if (c.accumulate) {
    low_sum = hn::Add(low_sum, hn::LoadU(d, to + column));
    high_sum = hn::Add(high_sum, hn::LoadU(d, to + column + lanes));
  }
  hn::StoreU(low_sum, d, to + column);
  hn::StoreU(high_sum, d, to + column + lanes);
}

// sums += a . b, neighbours together, in 32 bits.
template <class D32, class V16>
HWY_INLINE hn::Vec<D32> AddPairProducts(D32 d32, V16 a, V16 b, hn::Vec<D32> sums) {
#if HWY_TARGET == HWY_AVX3_DL
  // VNNI has one instruction for it. Highway 1.0 has no name for that, and compiles this target
  // without the feature that GCC's intrinsic asks for.
  static_cast<void>(d32);
  asm("vpdpwssd %2, %1, %0" : "+v"(sums.raw) : "v"(a.raw), "v"(b.raw));
  return sums;
#else
  auto unused = hn::Zero(d32);  // all of the sum is in the first of two
  return hn::ReorderWidenMulAccumulate(d32, a, b, sums, unused);
#endif
}

// Adds the products of two rows of B, from k on, to the sums of kRows rows: [kPairs, kRows].
template <int kRows, int kPairs, class D32, class D16>
HWY_INLINE void AddCodePairs(D32 d32, D16 d16, const FactorRows& a, std::int64_t k,
                             const std::int8_t* row, const std::int8_t* next,
                             hn::Vec<D32>* HWY_RESTRICT first_sums,
                             hn::Vec<D32>* HWY_RESTRICT second_sums) {
  hn::Vec<D16> first[kPairs];
  hn::Vec<D16> second[kPairs];
#pragma GCC unroll 2
  for (int pair = 0; pair < kPairs; ++pair) {
    const std::size_t column = static_cast<std::size_t>(2 * pair) * hn::Lanes(d32);
    LoadCodePairs(d16, row + column, next + column, first[pair], second[pair]);
  }
#pragma GCC unroll 8
  for (int r = 0; r < kRows; ++r) {
    const auto factors = hn::BitCast(d16, hn::Set(d32, FactorPair(a.factors + r * a.stride + k)));
#pragma GCC unroll 2
    for (int pair = 0; pair < kPairs; ++pair) {
      auto& first_sum = first_sums[pair * kRows + r];
      auto& second_sum = second_sums[pair * kRows + r];
      first_sum = AddPairProducts(d32, factors, first[pair], first_sum);
      second_sum = AddPairProducts(d32, factors, second[pair], second_sum);
    }
  }
}

// kPairs pairs of vectors of columns for kRows rows, two rows of B at a time.
template <int kRows, int kPairs, bool kFetch>
HWY_INLINE void MultiplyCodes(const FactorRows& a, std::int64_t depth,
                              const ElementRows<std::int8_t>& b, std::int64_t column,
                              const ResultRows& c) {
  const hn::ScalableTag<std::int32_t> d32;
  const hn::Repartition<std::int16_t, hn::ScalableTag<std::int32_t>> d16;
  hn::Vec<decltype(d32)> first_sums[kPairs * kRows];
  hn::Vec<decltype(d32)> second_sums[kPairs * kRows];
#pragma GCC unroll 8
  for (int i = 0; i < kPairs * kRows; ++i) first_sums[i] = second_sums[i] = hn::Zero(d32);
  const std::int8_t* from = b.base + column;
  std::int64_t k = 0;
  for (; k + 2 <= depth; k += 2, from += 2 * b.stride) {
    if constexpr (kFetch) Fetch(b.ahead, k * b.stride, (k + 2) * b.stride);
    AddCodePairs<kRows, kPairs>(d32, d16, a, k, from, from + b.stride, first_sums, second_sums);
  }
  // Behind an odd depth the factor is 0, and whatever is there stays unread.
  if (k < depth) AddCodePairs<kRows, kPairs>(d32, d16, a, k, from, from, first_sums, second_sums);
  if constexpr (kFetch) Fetch(b.ahead, k * b.stride, b.ahead.bytes);
  const auto lanes = static_cast<std::int64_t>(hn::Lanes(d32));
#pragma GCC unroll 8
  for (int row = 0; row < kRows; ++row) {
#pragma GCC unroll 2
    for (int pair = 0; pair < kPairs; ++pair) {
      StoreCodeSums(d32, first_sums[pair * kRows + row], second_sums[pair * kRows + row],
                    a.units[row], column + 2 * pair * lanes, c, c.base + row * c.stride);
    }
  }
}

// All columns for kRows rows.
template <int kRows>
HWY_INLINE void MultiplyCodeRows(const FactorRows& a, std::int64_t depth,
                                 const ElementRows<std::int8_t>& b, const ResultRows& c) {
  constexpr int kPairs = kColumnPairs<kRows>;
  const auto pair = 2 * static_cast<std::int64_t>(hn::Lanes(hn::ScalableTag<std::int32_t>()));
  bool fetches = b.ahead.data != nullptr;
  std::int64_t column = 0;
  for (; column + kPairs * pair <= b.columns; column += kPairs * pair) {
    if (std::exchange(fetches, false)) {
      MultiplyCodes<kRows, kPairs, true>(a, depth, b, column, c);
    } else {
      MultiplyCodes<kRows, kPairs, false>(a, depth, b, column, c);
    }
  }
  for (; column < b.columns; column += pair) {
    if (std::exchange(fetches, false)) {
      MultiplyCodes<kRows, 1, true>(a, depth, b, column, c);
    } else {
      MultiplyCodes<kRows, 1, false>(a, depth, b, column, c);
    }
  }
}

// The last rows, at most kRows.
template <int kRows>
HWY_INLINE void MultiplyCodesOfRest(std::int64_t rows, const FactorRows& a, std::int64_t depth,
                                    const ElementRows<std::int8_t>& b, const ResultRows& c) {
  if (rows == kRows) {
    MultiplyCodeRows<kRows>(a, depth, b, c);
  } else if constexpr (kRows > 1) {
    MultiplyCodesOfRest<kRows - 1>(rows, a, depth, b, c);
  }
}

#endif  // CAROUSEL_HAS_CODE_PRODUCT

// C[rows, columns] (+)= A[rows, depth] B[depth, columns], where FitsCodeProduct(depth, columns). B
// is read once per kCodeRows rows; what is read soon is fetched beside the first of them. Its
// arguments are not copied, as in RowProduct.
HWY_NOINLINE inline void CodeProduct(const FactorRows& a, std::int64_t rows, std::int64_t depth,
                                     const ElementRows<std::int8_t>& b, const ResultRows& c) {
  CAROUSEL_CHECK(FitsCodeProduct(depth, b.columns));
#if CAROUSEL_HAS_CODE_PRODUCT
  const std::int64_t tile = std::min<std::int64_t>(rows, kCodeRows);
  MultiplyCodesOfRest<kCodeRows>(tile, a, depth, b, c);
  if (rows > tile) CodeProduct(a.Below(tile), rows - tile, depth, b.WithoutAhead(), c.Below(tile));
#else
  static_cast<void>(a), static_cast<void>(rows), static_cast<void>(c);
#endif
}

}  // namespace HWY_NAMESPACE
}  // namespace carousel
HWY_AFTER_NAMESPACE();

#endif  // per-target include guard
