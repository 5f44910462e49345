// SPDX-License-Identifier: Apache-2.0
#include "rope/rope_spec.h"

#include <cmath>
#include <cstddef>

#include "base/check.h"

namespace carousel {

std::vector<double> PlainFrequencies(double theta, std::int64_t rotated_dims) {
  CAROUSEL_CHECK_GT(theta, 0.0);
  CAROUSEL_CHECK_GE(rotated_dims, 0);
  CAROUSEL_CHECK_EQ(rotated_dims % 2, 0);
  std::vector<double> frequencies(static_cast<std::size_t>(rotated_dims / 2));
  for (std::size_t i = 0; i < frequencies.size(); ++i) {
    frequencies[i] =
        std::pow(theta, -2.0 * static_cast<double>(i) / static_cast<double>(rotated_dims));
  }
  return frequencies;
}

}  // namespace carousel
