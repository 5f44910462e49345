// SPDX-License-Identifier: Apache-2.0
// cos and sin of the angles that rotate whole blocks: one row per multiple of block_size.
#pragma once

#include <cstdint>
#include <span>
#include <vector>

#include "rope/rope_spec.h"

namespace carousel {

// One angle per pair. Rotating by these moves a vector `multiple * block_size` positions on.
struct RotationRow {
  std::span<const float> cos;  // [rotated_dims / 2]
  std::span<const float> sin;  // [rotated_dims / 2]
};

// Rows are computed in double and kept in float32. Multiples may be negative: the inverse angle,
// which is what moves a surviving key towards the start of the cache. Never sized by a guess:
// Extend adds the rows of a larger multiple when it first appears.
class RotationTable {
 public:
  // `rope` must rotate. block_size > 0.
  RotationTable(const LayerRope& rope, std::int64_t block_size);

  // Makes rows for all multiples in [-largest, largest] available. Not thread-safe; invalidates
  // rows.
  void Extend(std::int64_t largest_multiple);
  // CHECKs that |multiple| has been extended to. Thread-safe beside other reads.
  RotationRow row(std::int64_t multiple) const;
  std::int64_t largest_multiple() const { return largest_multiple_; }
  std::int64_t block_size() const { return block_size_; }
  const LayerRope& rope() const { return rope_; }

 private:
  LayerRope rope_;
  std::int64_t block_size_;
  std::int64_t largest_multiple_ = -1;
  std::vector<float> cos_;           // [largest_multiple + 1, rotated_dims / 2]
  std::vector<float> sin_;           // likewise, of the positive angle
  std::vector<float> negative_sin_;  // likewise, of the inverse angle
};

}  // namespace carousel
