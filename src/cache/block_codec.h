// SPDX-License-Identifier: Apache-2.0
// Writes and reads one head's keys or values of one block: plane_layout.h says how they lie.
//
// Keys are dimension-major, [dim, block_size]: then both products of attention, q K^T and p V, are
// the same multiply-add of a row by a row-major matrix, and vectors run over tokens without
// horizontal sums. Values are token-major, [block_size, dim].
#pragma once

#include <cstddef>
#include <cstdint>

#include "carousel/enums.h"

namespace carousel {

// `dim` is key_dim or value_dim; slots [first_slot, first_slot + tokens) are within block_size. Row
// i of `from` starts at i * stride. All functions are noexcept and thread-safe on different planes.
class BlockCodec {
 public:
  virtual ~BlockCodec() = default;

  // One token's key or value per row of `from`. Where KeysNeedWholeBlocks, `tokens` is block_size.
  virtual void WriteKeys(std::byte* plane, std::int64_t block_size, std::int64_t dim,
                         std::int64_t first_slot, std::int64_t tokens, const float* from,
                         std::int64_t stride) const noexcept = 0;
  virtual void WriteValues(std::byte* plane, std::int64_t block_size, std::int64_t dim,
                           std::int64_t first_slot, std::int64_t tokens, const float* from,
                           std::int64_t stride) const noexcept = 0;

  // The whole plane as floats, in its own order: keys to [dim, block_size], values to [block_size,
  // dim]. Slots that were never written hold what memory held.
  virtual void ReadKeys(const std::byte* plane, std::int64_t block_size, std::int64_t dim,
                        float* to) const noexcept = 0;
  virtual void ReadValues(const std::byte* plane, std::int64_t block_size, std::int64_t dim,
                          float* to) const noexcept = 0;
  // The inverse of ReadKeys; key rotation rewrites planes with it.
  virtual void RewriteKeys(std::byte* plane, std::int64_t block_size, std::int64_t dim,
                           const float* from) const noexcept = 0;
};

// Lives for ever.
const BlockCodec& CodecFor(KvType type);

// Half-precision conversions, vectorised and dispatched at run time; round to nearest even.
void FloatToHalf(const float* from, std::uint16_t* to, std::int64_t count) noexcept;
void HalfToFloat(const std::uint16_t* from, float* to, std::int64_t count) noexcept;
// The upper half of a float's bits; rounds to nearest even, and NaN stays NaN.
void FloatToBfloat16(const float* from, std::uint16_t* to, std::int64_t count) noexcept;
void Bfloat16ToFloat(const std::uint16_t* from, float* to, std::int64_t count) noexcept;

}  // namespace carousel
