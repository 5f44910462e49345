// SPDX-License-Identifier: Apache-2.0
#pragma once

#include <vector>

namespace carousel {

// What a few measurements of the same thing come to.
struct Spread {
  double median = 0.0;  // of an even number, the mean of the middle two
  double least = 0.0;
  double most = 0.0;
};

// `values` are in any order; at least one.
Spread SpreadOf(std::vector<double> values);

}  // namespace carousel
