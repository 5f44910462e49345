// SPDX-License-Identifier: Apache-2.0
// The inner loop against plain loops, on every instruction set that this machine has.
#include <gtest/gtest.h>

#include <cmath>
#include <random>
#include <vector>

#ifndef CAROUSEL_ROW_PRODUCT_TEST_CALL
#define CAROUSEL_ROW_PRODUCT_TEST_CALL
namespace carousel {
// What a call of RowProduct gets, but B, as plain numbers: functions that are dispatched take no
// vectors.
struct Call {
  const float* first;
  const float* second;
  std::int64_t rows, depth, columns;
  float* c;
  bool accumulate;
  const float* column_scale;
};
}  // namespace carousel
#endif

#undef HWY_TARGET_INCLUDE
#define HWY_TARGET_INCLUDE "attention/row_product_test.cc"
#include <hwy/foreach_target.h>
// Highway's own headers come after foreach_target.
#include <hwy/highway.h>

#include "attention/row_product-inl.h"

HWY_BEFORE_NAMESPACE();
namespace carousel {
namespace HWY_NAMESPACE {

template <class Rows>
void Multiply(const Call& call, const Rows& b) {
  RowProduct(LeftRows{call.first, call.second, call.depth}, call.rows, call.depth, b,
             ResultRows{call.c, call.columns, call.accumulate, call.column_scale});
}

void MultiplyFloats(const Call& call, const void* b) {
  Multiply(call, ElementRows{static_cast<const float*>(b), call.columns, call.columns});
}
void MultiplyHalves(const Call& call, const void* b) {
  Multiply(call, ElementRows{static_cast<const hwy::float16_t*>(b), call.columns, call.columns});
}
void MultiplyBfloats(const Call& call, const void* b) {
  Multiply(call, ElementRows{static_cast<const hwy::bfloat16_t*>(b), call.columns, call.columns});
}
void MultiplyBytes(const Call& call, const void* b) {
  Multiply(call, ElementRows{static_cast<const std::int8_t*>(b), call.columns, call.columns});
}
void MultiplyNibbles(const Call& call, const void* b) {
  Multiply(call, NibbleRows{static_cast<const std::uint8_t*>(b), call.columns});
}

}  // namespace HWY_NAMESPACE
}  // namespace carousel
HWY_AFTER_NAMESPACE();

#if HWY_ONCE
#include "cache/block_codec.h"
#include "testing/rounding_bound.h"

namespace carousel {
HWY_EXPORT(MultiplyFloats);
HWY_EXPORT(MultiplyHalves);
HWY_EXPORT(MultiplyBfloats);
HWY_EXPORT(MultiplyBytes);
HWY_EXPORT(MultiplyNibbles);

namespace {

using MultiplyFunction = void (*)(const Call&, const void*);

std::vector<float> Random(std::int64_t count, std::mt19937* generator) {
  std::normal_distribution<float> normal;
  std::vector<float> values(static_cast<std::size_t>(count));
  for (float& value : values) value = normal(*generator);
  return values;
}

// One product by `multiply` and by plain loops in double; the tolerance is the rounding of a sum of
// `depth` products. `b` holds the numbers that `codes` stand for. The second half of B's columns
// has factors of its own when `two_factors`.
void ExpectProduct(MultiplyFunction multiply, Call call, const void* codes,
                   const std::vector<float>& b, bool two_factors, std::mt19937* generator) {
  const auto first = Random(call.rows * call.depth, generator);
  const auto second = two_factors ? Random(call.rows * call.depth, generator) : first;
  const auto scale = Random(call.columns, generator);
  const auto before = Random(call.rows * call.columns, generator);
  for (const bool accumulate : {false, true}) {
    for (const bool scaled : {false, true}) {
      auto c = before;
      call.first = first.data();
      call.second = second.data();
      call.c = c.data();
      call.accumulate = accumulate;
      call.column_scale = scaled ? scale.data() : nullptr;
      multiply(call, codes);
      for (std::int64_t row = 0; row < call.rows; ++row) {
        for (std::int64_t column = 0; column < call.columns; ++column) {
          const auto& a = two_factors && column >= call.columns / 2 ? second : first;
          double sum = 0.0;
          double magnitude = 0.0;
          for (std::int64_t k = 0; k < call.depth; ++k) {
            const double product =
                static_cast<double>(a[static_cast<std::size_t>(row * call.depth + k)]) *
                static_cast<double>(b[static_cast<std::size_t>(k * call.columns + column)]);
            sum += product;
            magnitude += std::abs(product);
          }
          if (scaled) {
            sum *= static_cast<double>(scale[static_cast<std::size_t>(column)]);
            magnitude *= std::abs(static_cast<double>(scale[static_cast<std::size_t>(column)]));
          }
          const auto at = static_cast<std::size_t>(row * call.columns + column);
          if (accumulate) {
            sum += static_cast<double>(before[at]);
            magnitude += std::abs(static_cast<double>(before[at]));
          }
          ASSERT_NEAR(static_cast<double>(c[at]), sum, RoundingBound(call.depth + 3, magnitude))
              << row << "," << column << " of " << call.rows << "x" << call.depth << "x"
              << call.columns;
        }
      }
    }
  }
}

// The buffers are as long as the codes and no longer: a read past them is the sanitizer's to see.
void TestSizes(std::int64_t rows, std::int64_t depth, std::int64_t columns,
               std::mt19937* generator) {
  const Call call{nullptr, nullptr, rows, depth, columns, nullptr, false, nullptr};
  const std::int64_t count = depth * columns;
  std::vector<float> b = Random(count, generator);
  ExpectProduct(HWY_DYNAMIC_DISPATCH(MultiplyFloats), call, b.data(), b, false, generator);

  std::vector<std::uint16_t> halves(b.size());
  FloatToHalf(b.data(), halves.data(), count);
  HalfToFloat(halves.data(), b.data(), count);
  ExpectProduct(HWY_DYNAMIC_DISPATCH(MultiplyHalves), call, halves.data(), b, false, generator);

  FloatToBfloat16(b.data(), halves.data(), count);
  Bfloat16ToFloat(halves.data(), b.data(), count);
  ExpectProduct(HWY_DYNAMIC_DISPATCH(MultiplyBfloats), call, halves.data(), b, false, generator);

  std::vector<std::int8_t> bytes(b.size());
  for (std::size_t i = 0; i < b.size(); ++i) {
    bytes[i] = static_cast<std::int8_t>((*generator)());
    b[i] = static_cast<float>(bytes[i]);
  }
  ExpectProduct(HWY_DYNAMIC_DISPATCH(MultiplyBytes), call, bytes.data(), b, false, generator);

  if (columns % 2 != 0) return;
  std::vector<std::uint8_t> nibbles(b.size() / 2);
  const std::int64_t half = columns / 2;
  for (std::int64_t k = 0; k < depth; ++k) {
    for (std::int64_t i = 0; i < half; ++i) {
      const auto byte = static_cast<std::uint8_t>((*generator)());
      nibbles[static_cast<std::size_t>(k * half + i)] = byte;
      b[static_cast<std::size_t>(k * columns + i)] = static_cast<float>(byte & 15);
      b[static_cast<std::size_t>(k * columns + half + i)] = static_cast<float>(byte >> 4);
    }
  }
  ExpectProduct(HWY_DYNAMIC_DISPATCH(MultiplyNibbles), call, nibbles.data(), b, true, generator);
}

void TestCurrentTarget() {
  std::mt19937 generator(7);
  for (std::int64_t rows = 1; rows <= 17; ++rows) TestSizes(rows, 5, 24, &generator);
  for (const std::int64_t columns : {1, 7, 8, 9, 16, 24, 31, 32, 33, 48, 64, 72, 80, 100, 256}) {
    TestSizes(3, 33, columns, &generator);
    TestSizes(9, 64, columns, &generator);
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
