// SPDX-License-Identifier: Apache-2.0
#include "rope/rotate.h"

#include <cmath>
#include <cstddef>
#include <utility>

#undef HWY_TARGET_INCLUDE
#define HWY_TARGET_INCLUDE "rope/rotate.cc"
#include "hwy/foreach_target.h"
// After foreach_target.h, which compiles the rest of this file once per instruction set.
#include "hwy/highway.h"
#include "rope/rotate-inl.h"

HWY_BEFORE_NAMESPACE();
namespace carousel {
namespace HWY_NAMESPACE {

// Tokens [begin, end) of one head, which move alike.
void RotateTokens(const LayerRope& rope, const RotationRow& row, std::int64_t head_dim,
                  std::int64_t begin, std::int64_t end,
                  float* head) {  // [block_size, head_dim]
  float* keys = head + begin * head_dim;
  RotateRowsInl(rope, row, head_dim, end - begin, keys, keys);
}

// The same for the layout in which a dimension's tokens lie together.
void RotateTokensDimensionMajor(const LayerRope& rope, const RotationRow& row,
                                std::int64_t block_size, std::int64_t begin, std::int64_t end,
                                float* head) {  // [head_dim, block_size]
  RotateColumnsInl(rope, row, end - begin, block_size, head + begin);
}

// Not inlined into the table: a table's entries are functions.
void RotateVectorOnTarget(const LayerRope& rope, const RotationRow& row, std::int64_t head_dim,
                          const float* from, float* to) {
  RotateRowsInl(rope, row, head_dim, 1, from, to);
}

// NOLINTNEXTLINE(google-readability-namespace-comments)
}  // namespace HWY_NAMESPACE
}  // namespace carousel
HWY_AFTER_NAMESPACE();

#if HWY_ONCE

#include "base/check.h"

namespace carousel {

HWY_EXPORT(RotateVectorOnTarget);
HWY_EXPORT(RotateTokens);
HWY_EXPORT(RotateTokensDimensionMajor);

void RotateVector(const LayerRope& rope, const RotationRow& row, std::int64_t head_dim,
                  const float* from, float* to) noexcept {
  HWY_DYNAMIC_DISPATCH(RotateVectorOnTarget)(rope, row, head_dim, from, to);
}

void RotateVectorReference(const LayerRope& rope, double position, std::int64_t head_dim,
                           const double* from, double* to) {
  const std::int64_t pairs = rope.rotated_dims / 2;
  const std::int64_t end = rope.first_dim + rope.rotated_dims;
  for (std::int64_t dim = 0; dim < head_dim; ++dim) {
    if (dim < rope.first_dim || dim >= end) to[dim] = from[dim];
  }
  for (std::int64_t pair = 0; pair < pairs; ++pair) {
    const bool halves = rope.pairing == Pairing::kHalves;
    const std::int64_t dim_x = rope.first_dim + (halves ? pair : 2 * pair);
    const std::int64_t dim_y = dim_x + (halves ? pairs : 1);
    const double angle = position * rope.frequencies[static_cast<std::size_t>(pair)];
    const double x = from[dim_x];
    const double y = from[dim_y];
    to[dim_x] = x * std::cos(angle) - y * std::sin(angle);
    to[dim_y] = x * std::sin(angle) + y * std::cos(angle);
  }
}

void RotateKeyBlocks(const RotationTable& table, KeyLayout layout, std::int64_t kv_heads,
                     std::int64_t head_dim, std::span<float* const> blocks,
                     const KeyDeltas& deltas) {
  const LayerRope& rope = table.rope();
  const std::int64_t block_size = table.block_size();
  CAROUSEL_CHECK_LE(rope.first_dim + rope.rotated_dims, head_dim);
  CAROUSEL_CHECK(deltas.columns == 1 || deltas.columns == block_size);
  CAROUSEL_CHECK_EQ(deltas.multiples.size(),
                    blocks.size() * static_cast<std::size_t>(deltas.columns));
  const auto rotate_tokens = HWY_DYNAMIC_DISPATCH(RotateTokens);
  const auto rotate_dimension_major = HWY_DYNAMIC_DISPATCH(RotateTokensDimensionMajor);
  for (std::size_t block = 0; block < blocks.size(); ++block) {
    const std::span<const std::int64_t> multiples = deltas.multiples.subspan(
        block * static_cast<std::size_t>(deltas.columns), static_cast<std::size_t>(deltas.columns));
    // Runs of tokens with the same delta: a delta per block is one run.
    std::int64_t begin = 0;
    while (begin < block_size) {
      const std::int64_t multiple = multiples[static_cast<std::size_t>(begin) % multiples.size()];
      std::int64_t end = deltas.columns == 1 ? block_size : begin + 1;
      while (end < block_size && multiples[static_cast<std::size_t>(end)] == multiple) ++end;
      for (std::int64_t head = 0; multiple != 0 && head < kv_heads; ++head) {
        float* keys = blocks[block] + head * block_size * head_dim;
        if (layout == KeyLayout::kTokenMajor) {
          rotate_tokens(rope, table.row(multiple), head_dim, begin, end, keys);
        } else {
          rotate_dimension_major(rope, table.row(multiple), block_size, begin, end, keys);
        }
      }
      begin = end;
    }
  }
}

}  // namespace carousel

#endif  // HWY_ONCE
