// SPDX-License-Identifier: Apache-2.0
#include "measure/statistics.h"

#include <algorithm>

#include "base/check.h"

namespace carousel {

Spread SpreadOf(std::vector<double> values) {
  CAROUSEL_CHECK(!values.empty());
  std::sort(values.begin(), values.end());
  const std::size_t middle = values.size() / 2;
  const double median =
      values.size() % 2 == 1 ? values[middle] : (values[middle - 1] + values[middle]) / 2.0;
  return {.median = median, .least = values.front(), .most = values.back()};
}

}  // namespace carousel
