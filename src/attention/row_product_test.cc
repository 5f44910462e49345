// SPDX-License-Identifier: Apache-2.0
// The inner loop against plain loops, on every instruction set that this machine has.
#include <gtest/gtest.h>

#include <cmath>
#include <random>
#include <vector>

#undef HWY_TARGET_INCLUDE
#define HWY_TARGET_INCLUDE "attention/row_product_test.cc"
#include <hwy/foreach_target.h>
// Highway's own headers come after foreach_target.
#include <hwy/highway.h>

#include "attention/row_product-inl.h"

HWY_BEFORE_NAMESPACE();
namespace carousel {
namespace HWY_NAMESPACE {

void ProductOfFloats(const float* a, std::int64_t a_stride, std::int64_t rows, std::int64_t depth,
                     const float* b, std::int64_t b_stride, std::int64_t columns, float* c,
                     std::int64_t c_stride, bool accumulate) {
  RowProduct(a, a_stride, rows, depth, b, b_stride, columns, c, c_stride, accumulate);
}

void ProductOfHalves(const float* a, std::int64_t a_stride, std::int64_t rows, std::int64_t depth,
                     const hwy::float16_t* b, std::int64_t b_stride, std::int64_t columns, float* c,
                     std::int64_t c_stride, bool accumulate) {
  RowProduct(a, a_stride, rows, depth, b, b_stride, columns, c, c_stride, accumulate);
}

}  // namespace HWY_NAMESPACE
}  // namespace carousel
HWY_AFTER_NAMESPACE();

#if HWY_ONCE
#include "cache/block_codec.h"

namespace carousel {
HWY_EXPORT(ProductOfFloats);
HWY_EXPORT(ProductOfHalves);

namespace {

struct Sizes {
  std::int64_t rows, depth, columns;
};

std::vector<float> Random(std::size_t count, std::mt19937* generator) {
  std::normal_distribution<float> normal;
  std::vector<float> values(count);
  for (float& value : values) value = normal(*generator);
  return values;
}

// c (+)= a b in double; the tolerance is the rounding of a sum of `depth` products.
void ExpectProduct(const Sizes& sizes, const std::vector<float>& a, const std::vector<float>& b,
                   const std::vector<float>& before, const std::vector<float>& c, bool accumulate) {
  for (std::int64_t row = 0; row < sizes.rows; ++row) {
    for (std::int64_t column = 0; column < sizes.columns; ++column) {
      const auto at = static_cast<std::size_t>(row * sizes.columns + column);
      double sum = accumulate ? static_cast<double>(before[at]) : 0.0;
      double magnitude = std::abs(sum);
      for (std::int64_t k = 0; k < sizes.depth; ++k) {
        const double product =
            static_cast<double>(a[static_cast<std::size_t>(row * sizes.depth + k)]) *
            static_cast<double>(b[static_cast<std::size_t>(k * sizes.columns + column)]);
        sum += product;
        magnitude += std::abs(product);
      }
      const double tolerance = magnitude * static_cast<double>(sizes.depth + 2) * 0x1.0p-24;
      ASSERT_NEAR(static_cast<double>(c[at]), sum, tolerance)
          << row << "," << column << " of " << sizes.rows << "x" << sizes.depth << "x"
          << sizes.columns;
    }
  }
}

void TestCurrentTarget() {
  std::mt19937 generator(7);
  std::vector<Sizes> all;
  for (std::int64_t rows = 1; rows <= 17; ++rows) all.push_back({rows, 5, 24});
  for (const std::int64_t columns : {1, 7, 8, 9, 16, 24, 31, 32, 33, 64, 72, 80, 100, 256}) {
    all.push_back({3, 33, columns});
    all.push_back({9, 64, columns});
  }
  for (const Sizes& sizes : all) {
    for (const bool accumulate : {false, true}) {
      const auto a = Random(static_cast<std::size_t>(sizes.rows * sizes.depth), &generator);
      auto b = Random(static_cast<std::size_t>(sizes.depth * sizes.columns), &generator);
      const auto before = Random(static_cast<std::size_t>(sizes.rows * sizes.columns), &generator);
      auto c = before;
      HWY_DYNAMIC_DISPATCH(ProductOfFloats)
      (a.data(), sizes.depth, sizes.rows, sizes.depth, b.data(), sizes.columns, sizes.columns,
       c.data(), sizes.columns, accumulate);
      ExpectProduct(sizes, a, b, before, c, accumulate);

      std::vector<std::uint16_t> halves(b.size());
      FloatToHalf(b.data(), halves.data(), static_cast<std::int64_t>(b.size()));
      HalfToFloat(halves.data(), b.data(), static_cast<std::int64_t>(b.size()));
      c = before;
      HWY_DYNAMIC_DISPATCH(ProductOfHalves)
      (a.data(), sizes.depth, sizes.rows, sizes.depth,
       reinterpret_cast<const hwy::float16_t*>(halves.data()), sizes.columns, sizes.columns,
       c.data(), sizes.columns, accumulate);
      ExpectProduct(sizes, a, b, before, c, accumulate);
    }
  }
}

TEST(RowProduct, EqualsPlainLoopsOnEveryTarget) {
  for (const auto target : hwy::SupportedAndGeneratedTargets()) {
    SCOPED_TRACE(hwy::TargetName(target));
    hwy::SetSupportedTargetsForTest(target);
    TestCurrentTarget();
  }
  hwy::SetSupportedTargetsForTest(0);
}

}  // namespace
}  // namespace carousel
#endif
