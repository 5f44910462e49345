// SPDX-License-Identifier: Apache-2.0
#include "rope/rotation_table.h"

#include <cmath>
#include <cstddef>

#include "base/check.h"

namespace carousel {

RotationTable::RotationTable(const LayerRope& rope, std::int64_t block_size)
    : rope_(rope), block_size_(block_size) {
  CAROUSEL_CHECK_GT(rope.rotated_dims, 0);
  CAROUSEL_CHECK_EQ(rope.rotated_dims % 2, 0);
  CAROUSEL_CHECK_EQ(static_cast<std::int64_t>(rope.frequencies.size()), rope.rotated_dims / 2);
  CAROUSEL_CHECK_GT(block_size, 0);
}

void RotationTable::Extend(std::int64_t largest_multiple) {
  CAROUSEL_CHECK_GE(largest_multiple, 0);
  if (largest_multiple <= largest_multiple_) return;
  const std::size_t pairs = rope_.frequencies.size();
  const std::size_t size = static_cast<std::size_t>(largest_multiple + 1) * pairs;
  cos_.resize(size);
  sin_.resize(size);
  negative_sin_.resize(size);
  for (std::int64_t multiple = largest_multiple_ + 1; multiple <= largest_multiple; ++multiple) {
    const std::size_t first = static_cast<std::size_t>(multiple) * pairs;
    const double tokens = static_cast<double>(multiple) * static_cast<double>(block_size_);
    for (std::size_t i = 0; i < pairs; ++i) {
      // In double: a float32 angle of some thousands of radians is off by 1e-4.
      const double angle = tokens * rope_.frequencies[i];
      cos_[first + i] = static_cast<float>(std::cos(angle));
      sin_[first + i] = static_cast<float>(std::sin(angle));
      negative_sin_[first + i] = -sin_[first + i];
    }
  }
  // Last, so that an allocation that throws above leaves the table as it was.
  largest_multiple_ = largest_multiple;
}

RotationRow RotationTable::row(std::int64_t multiple) const {
  CAROUSEL_CHECK_LE(multiple, largest_multiple_);
  CAROUSEL_CHECK_GE(multiple, -largest_multiple_);
  const std::size_t pairs = rope_.frequencies.size();
  const std::vector<float>& sin = multiple < 0 ? negative_sin_ : sin_;
  const std::size_t first = static_cast<std::size_t>(multiple < 0 ? -multiple : multiple) * pairs;
  return {.cos = std::span(cos_).subspan(first, pairs),
          .sin = std::span(sin).subspan(first, pairs)};
}

}  // namespace carousel
