// SPDX-License-Identifier: Apache-2.0
#include "eviction/query_form.h"

#include <gtest/gtest.h>
#include <hwy/targets.h>

#include <cmath>
#include <random>

namespace carousel {
namespace {

std::vector<float> Normal(std::size_t count, std::mt19937* generator) {
  std::normal_distribution<float> normal;
  std::vector<float> values(count);
  for (float& value : values) value = normal(*generator);
  return values;
}

// Dimensions and counts that whole vectors do and do not divide.
TEST(QueryForm, EqualsItsSlowTwinOnEveryTarget) {
  std::mt19937 generator(3);
  for (const auto target : hwy::SupportedAndGeneratedTargets()) {
    SCOPED_TRACE(hwy::TargetName(target));
    hwy::SetSupportedTargetsForTest(target);
    for (const std::size_t dim : {1U, 6U, 64U, 80U}) {
      for (const std::size_t count : {1U, 8U, 19U, 32U, 40U}) {
        QueryForm form{.linear = Normal(dim, &generator),
                       .quadratic = Normal(dim * dim, &generator)};
        const std::vector<float> keys = Normal(dim * count, &generator);
        std::vector<float> values(count, std::nanf(""));
        std::vector<double> expected(count);
        EvaluateForm(form, keys, values);
        EvaluateFormReference(form, keys, expected);
        for (std::size_t t = 0; t < count; ++t) {
          // dim^2 products of numbers near 1, each rounded once or twice.
          ASSERT_NEAR(static_cast<double>(values[t]), expected[t],
                      6e-8 * 16.0 * static_cast<double>(dim * dim + 1))
              << dim << " " << count;
        }
      }
    }
  }
  hwy::SetSupportedTargetsForTest(0);
}

TEST(QueryForm, SumsOuterProductsOnEveryTarget) {
  std::mt19937 generator(4);
  for (const auto target : hwy::SupportedAndGeneratedTargets()) {
    SCOPED_TRACE(hwy::TargetName(target));
    hwy::SetSupportedTargetsForTest(target);
    for (const std::size_t dim : {1U, 6U, 64U, 70U}) {
      for (const std::size_t rows : {0U, 1U, 32U}) {
        const std::vector<float> values = Normal(rows * dim, &generator);
        std::vector<double> sums(dim * dim, 0.5);
        AddOuterProducts(values, dim, sums);
        for (std::size_t i = 0; i < dim; ++i) {
          for (std::size_t j = 0; j < dim; ++j) {
            double expected = 0.5;
            for (std::size_t r = 0; r < rows; ++r)
              expected += static_cast<double>(values[r * dim + i]) *
                          static_cast<double>(values[r * dim + j]);
            ASSERT_NEAR(sums[i * dim + j], expected, 6e-8 * 16.0 * static_cast<double>(rows + 1));
          }
        }
      }
    }
  }
  hwy::SetSupportedTargetsForTest(0);
}

}  // namespace
}  // namespace carousel
