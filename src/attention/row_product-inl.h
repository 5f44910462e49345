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
#include <cstddef>
#include <cstdint>
#include <utility>

HWY_BEFORE_NAMESPACE();
namespace carousel {
namespace HWY_NAMESPACE {
namespace hn = hwy::HWY_NAMESPACE;

// Rows of A whose sums are held in registers at once: rows * 2 accumulators, plus B and a
// broadcast, must fit 32 registers on AVX-512 and 16 below.
inline constexpr int kTileRows = HWY_MAX_BYTES >= 64 ? 12 : 6;
// Most rows of the tile that takes what is left.
inline constexpr int kRestRows = HWY_MAX_BYTES >= 64 ? 8 : 5;
inline constexpr std::int64_t kCacheLine = 64;

template <class D>
HWY_INLINE hn::Vec<D> LoadElements(D d, const float* from) {
  return hn::LoadU(d, from);
}
template <class D>
HWY_INLINE hn::Vec<D> LoadElements(D d, const hwy::float16_t* from) {
  return hn::PromoteTo(d, hn::LoadU(hn::Rebind<hwy::float16_t, D>(), from));
}
template <class D>
HWY_INLINE hn::Vec<D> LoadElements(D d, const hwy::bfloat16_t* from) {
  return hn::PromoteTo(d, hn::LoadU(hn::Rebind<hwy::bfloat16_t, D>(), from));
}
template <class D>
HWY_INLINE hn::Vec<D> LoadElements(D d, const std::int8_t* from) {
  const hn::Rebind<std::int32_t, D> d32;
  return hn::ConvertTo(d, hn::PromoteTo(d32, hn::LoadU(hn::Rebind<std::int8_t, D>(), from)));
}

// What is read soon and fetched into the cache meanwhile, row by row of B; what is left, such as
// the scales behind a plane's codes, after them.
struct Ahead {
  const std::byte* data = nullptr;  // or null
  std::int64_t bytes = 0;
  bool first_level = false;  // of the cache; or into the second
};

// B, [depth, columns], of elements or int8 codes. A pair of vectors lies side by side.
template <class Element>
struct ElementRows {
  const Element* base;
  std::int64_t stride;   // in elements
  std::int64_t columns;  // how far a row goes
  Ahead ahead;

  static constexpr bool kIsPacked = false;

  ElementRows WithoutAhead() const { return {base, stride, columns, {}}; }
  HWY_INLINE std::int64_t row_bytes() const {
    return stride * static_cast<std::int64_t>(sizeof(Element));
  }

  template <class D>
  HWY_INLINE void LoadPair(D d, std::int64_t k, std::int64_t column, hn::Vec<D>& first,
                           hn::Vec<D>& second) const {
    const Element* from = base + k * stride + column;
    first = LoadElements(d, from);
    second = LoadElements(d, from + hn::Lanes(d));
  }
  template <class D>
  HWY_INLINE hn::Vec<D> LoadOne(D d, std::int64_t k, std::int64_t column) const {
    return LoadElements(d, base + k * stride + column);
  }
  // Where the second vector of a pair stands in a row of C.
  template <class D>
  HWY_INLINE std::int64_t SecondColumn(D d) const {
    return static_cast<std::int64_t>(hn::Lanes(d));
  }
  // How far the next pair is.
  template <class D>
  HWY_INLINE std::int64_t PairColumns(D d) const {
    return 2 * SecondColumn(d);
  }
};
// clang 14 has no deduction for aggregates.
template <class T>
ElementRows(const T*, std::int64_t, std::int64_t, Ahead = {}) -> ElementRows<T>;

// B of int4 codes, two in a byte: the nibbles below are a row's first half, those above its second.
struct NibbleRows {
  const std::uint8_t* base;
  std::int64_t columns;  // of B; a row has half as many bytes
  Ahead ahead;

  static constexpr bool kIsPacked = true;

  NibbleRows WithoutAhead() const { return {base, columns, {}}; }
  HWY_INLINE std::int64_t row_bytes() const { return columns / 2; }

  template <class D>
  HWY_INLINE void LoadPair(D d, std::int64_t k, std::int64_t column, hn::Vec<D>& first,
                           hn::Vec<D>& second) const {
    const hn::Rebind<std::int32_t, D> d32;
    const auto bytes = hn::PromoteTo(
        d32, hn::LoadU(hn::Rebind<std::uint8_t, D>(), base + k * (columns / 2) + column));
    first = hn::ConvertTo(d, hn::And(bytes, hn::Set(d32, 15)));
    second = hn::ConvertTo(d, hn::ShiftRight<4>(bytes));
  }
  template <class D>
  HWY_INLINE std::int64_t SecondColumn(D /*d*/) const {
    return columns / 2;
  }
  template <class D>
  HWY_INLINE std::int64_t PairColumns(D d) const {
    return static_cast<std::int64_t>(hn::Lanes(d));
  }
};

// A, [rows, depth]. `second` is what the second vector of a pair is multiplied by: the same
// numbers, or others where the two halves of a row of B have scales of their own.
struct LeftRows {
  const float* first;
  const float* second;
  std::int64_t stride;

  LeftRows Below(std::int64_t rows) const {
    return {first + rows * stride, second + rows * stride, stride};
  }
};

// C, [rows, columns].
struct ResultRows {
  float* base;
  std::int64_t stride;
  bool accumulate;            // += instead of =
  const float* column_scale;  // [columns]: multiplies the sums before they are stored; or null

  ResultRows Below(std::int64_t rows) const {
    return {base + rows * stride, stride, accumulate, column_scale};
  }
};

// Into the level that is said: which one serves a core better is measured (base/prefetch.h).
HWY_INLINE void Fetch(const Ahead& ahead, std::int64_t begin, std::int64_t end) {
  constexpr int kRead = 0;
  constexpr int kSecondLevel = 2;
  constexpr int kFirstLevel = 3;
  if (ahead.first_level) {
    for (; begin < end; begin += kCacheLine)
      __builtin_prefetch(ahead.data + begin, kRead, kFirstLevel);
    return;
  }
  for (; begin < end; begin += kCacheLine)
    __builtin_prefetch(ahead.data + begin, kRead, kSecondLevel);
}

// Pairs of vectors of columns whose sums are held at once: with few rows registers are left for
// two, so that a row of B is read in one go.
template <int kRows>
inline constexpr int kColumnPairs = HWY_MAX_BYTES >= 64 && kRows <= 4 ? 2 : 1;

// Few sums leave the multiply-adds waiting for one another: then every second step has sums of its
// own.
template <int kRows, int kPairs>
inline constexpr int kChains = kRows* kPairs <= 3 ? 2 : 1;

// Step k of a product: row k of kPairs pairs of B's columns times column k of A.
template <int kRows, int kPairs, class D, class Rows>
HWY_INLINE void AddStep(D d, const LeftRows& a, std::int64_t k, const Rows& b, std::int64_t column,
                        hn::Vec<D>* HWY_RESTRICT first_sums, hn::Vec<D>* HWY_RESTRICT second_sums) {
  hn::Vec<D> first_columns[kPairs];
  hn::Vec<D> second_columns[kPairs];
#pragma GCC unroll 2
  for (int pair = 0; pair < kPairs; ++pair) {
    b.LoadPair(d, k, column + pair * b.PairColumns(d), first_columns[pair], second_columns[pair]);
  }
#pragma GCC unroll 12
  for (int row = 0; row < kRows; ++row) {
    const auto factor = hn::Set(d, a.first[row * a.stride + k]);
    auto second_factor = factor;
    if constexpr (Rows::kIsPacked) second_factor = hn::Set(d, a.second[row * a.stride + k]);
#pragma GCC unroll 2
    for (int pair = 0; pair < kPairs; ++pair) {
      auto& first_sum = first_sums[pair * kRows + row];
      auto& second_sum = second_sums[pair * kRows + row];
      first_sum = hn::MulAdd(factor, first_columns[pair], first_sum);
      second_sum = hn::MulAdd(second_factor, second_columns[pair], second_sum);
    }
  }
}

// Two vectors of a row of C, scaled and added to what is there where that is asked for.
template <class D>
HWY_INLINE void StorePair(D d, hn::Vec<D> first, hn::Vec<D> second, std::int64_t column,
                          std::int64_t second_column, const ResultRows& c,
                          float* HWY_RESTRICT row) {
  if (c.column_scale != nullptr) {
    first = hn::Mul(first, hn::LoadU(d, c.column_scale + column));
    second = hn::Mul(second, hn::LoadU(d, c.column_scale + second_column));
  }
  if (c.accumulate) {
    first = hn::Add(first, hn::LoadU(d, row + column));
    second = hn::Add(second, hn::LoadU(d, row + second_column));
  }
  hn::StoreU(first, d, row + column);
  hn::StoreU(second, d, row + second_column);
}

// kPairs pairs of vectors of columns for kRows rows.
template <int kRows, int kPairs, bool kFetch, class D, class Rows>
HWY_INLINE void MultiplyPairs(D d, const LeftRows& a, std::int64_t depth, const Rows& b,
                              std::int64_t column, const ResultRows& c) {
  constexpr int kSums = kPairs * kRows;
  constexpr int kSteps = kChains<kRows, kPairs>;
  hn::Vec<D> first_sums[kSteps][kSums];
  hn::Vec<D> second_sums[kSteps][kSums];
#pragma GCC unroll 2
  for (int chain = 0; chain < kSteps; ++chain) {
#pragma GCC unroll 12
    for (int i = 0; i < kSums; ++i) first_sums[chain][i] = second_sums[chain][i] = hn::Zero(d);
  }
  const std::int64_t row_bytes = b.row_bytes();
  std::int64_t k = 0;
  for (; k + kSteps <= depth; k += kSteps) {
    if constexpr (kFetch) Fetch(b.ahead, k * row_bytes, (k + kSteps) * row_bytes);
#pragma GCC unroll 2
    for (int chain = 0; chain < kSteps; ++chain)
      AddStep<kRows, kPairs>(d, a, k + chain, b, column, first_sums[chain], second_sums[chain]);
  }
  if constexpr (kSteps == 2) {
    if (k < depth) AddStep<kRows, kPairs>(d, a, k, b, column, first_sums[0], second_sums[0]);
#pragma GCC unroll 12
    for (int i = 0; i < kSums; ++i) {
      first_sums[0][i] = hn::Add(first_sums[0][i], first_sums[1][i]);
      second_sums[0][i] = hn::Add(second_sums[0][i], second_sums[1][i]);
    }
  }
  if constexpr (kFetch) Fetch(b.ahead, k * row_bytes, b.ahead.bytes);
  float* HWY_RESTRICT to = c.base;
#pragma GCC unroll 12
  for (int row = 0; row < kRows; ++row, to += c.stride) {
#pragma GCC unroll 2
    for (int pair = 0; pair < kPairs; ++pair) {
      const std::int64_t at = column + pair * b.PairColumns(d);
      const int i = pair * kRows + row;
      StorePair(d, first_sums[0][i], second_sums[0][i], at, at + b.SecondColumn(d), c, to);
    }
  }
}

// One vector of kRows rows, where no pair is left.
template <int kRows, class D, class Rows>
HWY_INLINE void MultiplySingles(D d, const LeftRows& a, std::int64_t depth, const Rows& b,
                                std::int64_t column, const ResultRows& c) {
  hn::Vec<D> sums[kRows];
#pragma GCC unroll 12
  for (int row = 0; row < kRows; ++row) sums[row] = hn::Zero(d);
  for (std::int64_t k = 0; k < depth; ++k) {
    const auto b_column = b.LoadOne(d, k, column);
#pragma GCC unroll 12
    for (int row = 0; row < kRows; ++row) {
      sums[row] = hn::MulAdd(hn::Set(d, a.first[row * a.stride + k]), b_column, sums[row]);
    }
  }
  float* to = c.base + column;
#pragma GCC unroll 12
  for (int row = 0; row < kRows; ++row, to += c.stride) {
    if (c.column_scale != nullptr)
      sums[row] = hn::Mul(sums[row], hn::LoadU(d, c.column_scale + column));
    if (c.accumulate) sums[row] = hn::Add(sums[row], hn::LoadU(d, to));
    hn::StoreU(sums[row], d, to);
  }
}

// The last columns, lane by lane: rare, and so not worth code of its own for each number of rows.
template <class Rows>
HWY_NOINLINE void MultiplyLastColumns(LeftRows a, std::int64_t rows, std::int64_t depth,
                                      const Rows& b, std::int64_t column, std::int64_t end,
                                      ResultRows c) {
  const hn::CappedTag<float, 1> one;
  for (std::int64_t row = 0; row < rows; ++row) {
    for (std::int64_t at = column; at < end; ++at) {
      if constexpr (Rows::kIsPacked) {
        MultiplyPairs<1, 1, false>(one, a, depth, b, at, c);
      } else {
        MultiplySingles<1>(one, a, depth, b, at, c);
      }
    }
    a.first += a.stride;
    a.second += a.stride;
    c.base += c.stride;
  }
}

// All columns for kRows rows.
template <int kRows, class Rows>
HWY_INLINE void MultiplyRows(const LeftRows& a, std::int64_t depth, const Rows& b,
                             const ResultRows& c) {
  const hn::ScalableTag<float> full;
  const hn::CappedTag<float, 8> eight;
  const auto eight_lanes = static_cast<std::int64_t>(hn::Lanes(eight));
  // How far a vector of each column goes: half a row where the other half comes with it.
  const std::int64_t end = Rows::kIsPacked ? b.columns / 2 : b.columns;
  const std::int64_t pair = b.PairColumns(full);
  constexpr int kPairs = kColumnPairs<kRows>;
  bool fetches = b.ahead.data != nullptr;
  std::int64_t column = 0;
  for (; column + kPairs * pair <= end; column += kPairs * pair) {
    if (std::exchange(fetches, false)) {
      MultiplyPairs<kRows, kPairs, true>(full, a, depth, b, column, c);
    } else {
      MultiplyPairs<kRows, kPairs, false>(full, a, depth, b, column, c);
    }
  }
  for (; kPairs > 1 && column + pair <= end; column += pair) {
    if (std::exchange(fetches, false)) {
      MultiplyPairs<kRows, 1, true>(full, a, depth, b, column, c);
    } else {
      MultiplyPairs<kRows, 1, false>(full, a, depth, b, column, c);
    }
  }
  for (; column + eight_lanes <= end; column += eight_lanes) {
    if constexpr (Rows::kIsPacked) {
      MultiplyPairs<kRows, 1, false>(eight, a, depth, b, column, c);
    } else {
      MultiplySingles<kRows>(eight, a, depth, b, column, c);
    }
  }
  if (column < end) MultiplyLastColumns(a, kRows, depth, b, column, end, c);
}

// The last rows, at most kRows.
template <int kRows, class Rows>
HWY_INLINE void MultiplyRest(std::int64_t rows, const LeftRows& a, std::int64_t depth,
                             const Rows& b, const ResultRows& c) {
  if (rows == kRows) {
    MultiplyRows<kRows>(a, depth, b, c);
  } else if constexpr (kRows > 1) {
    MultiplyRest<kRows - 1>(rows, a, depth, b, c);
  }
}

template <class Rows>
void RowProduct(const LeftRows& a, std::int64_t rows, std::int64_t depth, const Rows& b,
                const ResultRows& c);

// RowProduct for at least kTileRows rows.
template <class Rows>
HWY_NOINLINE void MultiplyTiles(LeftRows a, std::int64_t rows, std::int64_t depth, Rows b,
                                ResultRows c) {
  for (; rows >= kTileRows; rows -= kTileRows) {
    MultiplyRows<kTileRows>(a, depth, b, c);
    a = a.Below(kTileRows);
    c = c.Below(kTileRows);
    b.ahead = {};
  }
  if (rows > 0) RowProduct(a, rows, depth, b, c);
}

// C[rows, columns] (+)= A[rows, depth] B[depth, columns]. Any sizes; columns are even where B is
// packed. B is read once per tile of rows; what is read soon is fetched beside the first tile.
//
// Few rows, as decode has them, read the arguments where the caller has just put them: a copy would
// wait until they are in the cache.
template <class Rows>
HWY_NOINLINE void RowProduct(const LeftRows& a, std::int64_t rows, std::int64_t depth,
                             const Rows& b, const ResultRows& c) {
  if (rows >= kTileRows) return MultiplyTiles(a, rows, depth, b, c);
  const std::int64_t tile = std::min<std::int64_t>(rows, kRestRows);
  MultiplyRest<kRestRows>(tile, a, depth, b, c);
  if (rows > tile) RowProduct(a.Below(tile), rows - tile, depth, b.WithoutAhead(), c.Below(tile));
}

}  // namespace HWY_NAMESPACE
}  // namespace carousel
HWY_AFTER_NAMESPACE();

#endif  // per-target include guard
