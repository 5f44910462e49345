// SPDX-License-Identifier: Apache-2.0
// Quadratic forms over keys: what a normal distribution of queries expects of them, and the sums
// that such a distribution is known by. Vectorised, chosen at run time.
#pragma once

#include <cstddef>
#include <span>
#include <vector>

namespace carousel {

// f(k) = linear . k + k' quadratic k.
struct QueryForm {
  std::vector<float> linear;     // [dim]
  std::vector<float> quadratic;  // [dim, dim], symmetric
};

// values[t] = f(k_t) for the keys of a block, [dim, values.size()]. Thread-safe.
void EvaluateForm(const QueryForm& form, std::span<const float> keys, std::span<float> values);
// Its slow twin, in double.
void EvaluateFormReference(const QueryForm& form, std::span<const float> keys,
                           std::span<double> values);

// sums += the sum of r r' over the rows; rows are [n, dim], sums [dim, dim]. A call's own sum is in
// float, so n stays in the hundreds. Thread-safe.
void AddOuterProducts(std::span<const float> rows, std::size_t dim, std::span<double> sums);

}  // namespace carousel
