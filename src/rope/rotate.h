// SPDX-License-Identifier: Apache-2.0
// The one rotation that model, cache and tests share: y = R(angle) x for queries, and in place for
// keys.
#pragma once

#include <cstdint>
#include <span>

#include "rope/rope_spec.h"
#include "rope/rotation_table.h"

namespace carousel {

// to[0, head_dim) = R(row) from. `from` and `to` are the same or do not overlap. Vectorised;
// noexcept.
void RotateVector(const LayerRope& rope, const RotationRow& row, std::int64_t head_dim,
                  const float* from, float* to) noexcept;

// Slow twin in double at any position (not only multiples of a block): to = R(position) from.
// The judge in tests, and what the tiny models of the tests use as their RoPE.
void RotateVectorReference(const LayerRope& rope, double position, std::int64_t head_dim,
                           const double* from, double* to);

// Which of a key block's last two dimensions runs fastest.
enum class KeyLayout {
  kTokenMajor,      // [kv_heads, block_size, head_dim]
  kDimensionMajor,  // [kv_heads, head_dim, block_size]
};

// How far each block's keys move, as multiples of block_size: [num_blocks, 1] moves all of a
// block's tokens alike, [num_blocks, block_size] says it token by token (the first form broadcasts
// over the second).
struct KeyDeltas {
  std::span<const std::int64_t> multiples;  // [num_blocks * columns]
  std::int64_t columns = 1;                 // 1 or block_size
};

// Key rotation in place (decision 3): keys[b] <- R(multiple * block_size) keys[b]
// for each block. Negative multiples are the inverse angle that survivors behind a hole need. The
// table must be extended far enough. blocks[b] points at kv_heads * block_size * head_dim floats in
// `layout`.
void RotateKeyBlocks(const RotationTable& table, KeyLayout layout, std::int64_t kv_heads,
                     std::int64_t head_dim, std::span<float* const> blocks,
                     const KeyDeltas& deltas);

}  // namespace carousel
