// SPDX-License-Identifier: Apache-2.0
// Rows of factors times int8 codes against plain loops, on every instruction set that this machine
// has: rounding is as fine as it says, and sums of rounded rows are exact.
#include <gtest/gtest.h>

#include <cmath>
#include <random>
#include <vector>

#ifndef CAROUSEL_CODE_PRODUCT_TEST_CALL
#define CAROUSEL_CODE_PRODUCT_TEST_CALL
namespace carousel {
// A product's sizes and numbers as plain pointers: functions that are dispatched take no vectors.
struct CodeCall {
  const float* a;       // [rows, depth]
  const float* scales;  // [depth] or null
  std::int64_t rows, depth, columns;
  const std::int8_t* codes;  // [depth, columns]
  bool accumulate;
  const float* column_scale;  // [columns] or null
  std::int16_t* factors;      // [rows, depth, made even]
  float* units;               // [rows]
  float* c;                   // [rows, columns]
};
}  // namespace carousel
#endif

#undef HWY_TARGET_INCLUDE
#define HWY_TARGET_INCLUDE "attention/code_product_test.cc"
#include <hwy/foreach_target.h>
// Highway's own headers come after foreach_target.
#include <hwy/highway.h>

#include "attention/code_product-inl.h"

HWY_BEFORE_NAMESPACE();
namespace carousel {
namespace HWY_NAMESPACE {

// False where the target does not multiply codes of these sizes.
bool MultiplyCodeCall(const CodeCall& call) {
  if (!FitsCodeProduct(call.depth, call.columns)) return false;
  const std::int64_t even = call.depth + call.depth % 2;
  for (std::int64_t row = 0; row < call.rows; ++row) {
    const float* from = call.a + row * call.depth;
    call.units[row] =
        RoundToFactors(from, call.scales, call.depth,
                       LargestMagnitude(from, call.scales, call.depth), call.factors + row * even);
  }
  CodeProduct({call.factors, even, call.units}, call.rows, call.depth,
              ElementRows<std::int8_t>{call.codes, call.columns, call.columns, {}},
              {call.c, call.columns, call.accumulate, call.column_scale});
  return true;
}

bool MultipliesWhatFits() {
  const auto pair = 2 * static_cast<std::int64_t>(hn::Lanes(hn::ScalableTag<float>()));
  return FitsCodeProduct(kMostCodeDepth, pair) == (CAROUSEL_HAS_CODE_PRODUCT != 0) &&
         !FitsCodeProduct(kMostCodeDepth + 1, pair) && !FitsCodeProduct(64, pair + 8);
}

}  // namespace HWY_NAMESPACE
}  // namespace carousel
HWY_AFTER_NAMESPACE();

#if HWY_ONCE
#include "testing/rounding_bound.h"

namespace carousel {
HWY_EXPORT(MultiplyCodeCall);
HWY_EXPORT(MultipliesWhatFits);

namespace {

std::vector<float> Random(std::int64_t count, std::mt19937* generator) {
  std::normal_distribution<float> normal;
  std::vector<float> values(static_cast<std::size_t>(count));
  for (float& value : values) value = normal(*generator);
  return values;
}

// Codes are as many as they have to be and no more: a read past them is the sanitizer's to see.
bool TestSizes(std::int64_t rows, std::int64_t depth, std::int64_t columns, bool scaled,
               std::mt19937* generator) {
  const auto a = Random(rows * depth, generator);
  const auto scales = Random(depth, generator);
  const auto column_scale = Random(columns, generator);
  const auto before = Random(rows * columns, generator);
  std::vector<std::int8_t> codes(static_cast<std::size_t>(depth * columns));
  for (std::int8_t& code : codes) code = static_cast<std::int8_t>((*generator)());
  const std::int64_t even = depth + depth % 2;
  std::vector<std::int16_t> factors(static_cast<std::size_t>(rows * even));
  std::vector<float> units(static_cast<std::size_t>(rows));
  std::vector<float> c = before;
  if (!HWY_DYNAMIC_DISPATCH(MultiplyCodeCall)(
          {a.data(), scaled ? scales.data() : nullptr, rows, depth, columns, codes.data(), scaled,
           scaled ? column_scale.data() : nullptr, factors.data(), units.data(), c.data()})) {
    return false;
  }
  for (std::int64_t row = 0; row < rows; ++row) {
    const auto unit = static_cast<double>(units[static_cast<std::size_t>(row)]);
    double largest = 0.0;
    for (std::int64_t k = 0; k < depth; ++k) {
      const double exact = static_cast<double>(a[static_cast<std::size_t>(row * depth + k)]) *
                           (scaled ? static_cast<double>(scales[static_cast<std::size_t>(k)]) : 1);
      const double rounded =
          unit * static_cast<double>(factors[static_cast<std::size_t>(row * even + k)]);
      largest = std::max(largest, std::abs(exact));
      // Half a unit, and the rounding of five floats of up to 32,767 units: 5 * 32767 * 2^-24.
      EXPECT_NEAR(rounded, exact, 0.51 * unit) << "row " << row << ", factor " << k;
    }
    EXPECT_NEAR(unit, largest / 32767, 1e-6 * unit);
    if (depth != even) {
      EXPECT_EQ(factors[static_cast<std::size_t>(row * even + depth)], 0);
    }
    for (std::int64_t column = 0; column < columns; ++column) {
      std::int64_t sum = 0;
      for (std::int64_t k = 0; k < depth; ++k)
        sum += std::int64_t{factors[static_cast<std::size_t>(row * even + k)]} *
               codes[static_cast<std::size_t>(k * columns + column)];
      double want = unit * static_cast<double>(sum);
      const auto at = static_cast<std::size_t>(row * columns + column);
      double magnitude = std::abs(want);
      if (scaled) {
        want *= static_cast<double>(column_scale[static_cast<std::size_t>(column)]);
        magnitude = std::abs(want) + std::abs(static_cast<double>(before[at]));
        want += static_cast<double>(before[at]);
      }
      EXPECT_NEAR(static_cast<double>(c[at]), want, RoundingBound(4, magnitude))
          << row << "," << column << " of " << rows << "x" << depth << "x" << columns;
    }
  }
  return true;
}

TEST(CodeProduct, SumsRoundedRowsExactlyOnEveryTarget) {
  for (const auto target : hwy::SupportedAndGeneratedTargets()) {
    SCOPED_TRACE(hwy::TargetName(target));
    hwy::SetSupportedTargetsForTest(target);
    EXPECT_TRUE(HWY_DYNAMIC_DISPATCH(MultipliesWhatFits)());
    std::mt19937 generator(5);
    std::int64_t multiplied = 0;
    for (std::int64_t rows = 1; rows <= 17; ++rows) {
      for (const std::int64_t depth : {1, 2, 31, 32, 64, 256, 512}) {
        for (const std::int64_t columns : {16, 32, 64, 80, 96, 160}) {
          for (const bool scaled : {false, true})
            multiplied += TestSizes(rows, depth, columns, scaled, &generator) ? 1 : 0;
          if (HasFailure()) return;
        }
      }
    }
    // What x86-64 has had since AVX2.
    if (target <= HWY_AVX2) {
      EXPECT_GT(multiplied, 500);
    }
  }
  hwy::SetSupportedTargetsForTest(0);
}

}  // namespace
}  // namespace carousel
#endif
