// SPDX-License-Identifier: Apache-2.0
// How many bytes one head's keys or values of one block take, and where their parts lie.
//
// A plane is codes, then what turns codes back into numbers. Keys are dimension-major, [dim,
// block_size], and values token-major, [block_size, dim] (docs/decisions/0001).
//
//   f32, f16, bf16  the elements
//   int8            codes in [-127, 127], then f32 scales [block_size]: x = scale[token] * code
//   int4 keys       codes in [0, 15], then f16 scales [2, dim] and f16 offsets [2, dim], for each
//                   channel within each half of the block: x = scale[h, d] * code + offset[h, d]
//   int4 values     codes in [0, 15], then f16 scales [2, block_size] and f16 offsets [2,
//                   block_size], for each half of a token's dimensions
//
// Grouping of int4 as in KIVI (Liu et al. 2024): keys have outlying channels, values have not. Two
// int4 codes share a byte: in a row of n codes, byte i holds code i below and code i + n / 2 above,
// so that both nibbles of a run of bytes are runs of codes.
#pragma once

#include <cstddef>
#include <cstdint>
#include <type_traits>

#include "carousel/enums.h"

namespace carousel {

// Bytes of the codes alone. `elements` is even for int4.
constexpr std::size_t CodeBytes(KvType type, std::int64_t elements) {
  const auto count = static_cast<std::size_t>(elements);
  switch (type) {
    case KvType::kF32:
      return count * 4;
    case KvType::kF16:
    case KvType::kBf16:
      return count * 2;
    case KvType::kInt8:
      return count;
    case KvType::kInt4:
      return count / 2;
  }
  return 0;
}

// Of codes and what belongs to them: int8 has a scale per token, int4 a scale and an offset for
// each of `int4_groups`.
constexpr std::size_t PlaneBytes(KvType type, std::int64_t block_size, std::int64_t dim,
                                 std::int64_t int4_groups) {
  const std::size_t codes = CodeBytes(type, block_size * dim);
  if (type == KvType::kInt8) return codes + static_cast<std::size_t>(block_size) * sizeof(float);
  if (type == KvType::kInt4)
    return codes + static_cast<std::size_t>(int4_groups) * 2 * sizeof(std::uint16_t);
  return codes;
}
constexpr std::size_t KeyPlaneBytes(KvType type, std::int64_t block_size, std::int64_t dim) {
  return PlaneBytes(type, block_size, dim, 2 * dim);
}
constexpr std::size_t ValuePlaneBytes(KvType type, std::int64_t block_size, std::int64_t dim) {
  return PlaneBytes(type, block_size, dim, 2 * block_size);
}

// Whether keys of this type can only be written a whole block at a time, because their scales
// cover all of its tokens.
constexpr bool KeysNeedWholeBlocks(KvType type) { return type == KvType::kInt4; }

// What block_size (for keys) and the head size of values have to be multiples of.
constexpr std::int64_t KeyTokensMultiple(KvType type) { return type == KvType::kInt4 ? 16 : 8; }
constexpr std::int64_t ValueDimMultiple(KvType type) { return type == KvType::kInt4 ? 2 : 1; }

// Where a plane's parts lie. The plane is const or not as the caller's pointer is.
template <class Byte>
auto* ScalesOfInt8(Byte* plane, std::int64_t block_size, std::int64_t dim) {
  using Float = std::conditional_t<std::is_const_v<Byte>, const float, float>;
  return reinterpret_cast<Float*>(plane + CodeBytes(KvType::kInt8, block_size * dim));
}
template <class Byte>
auto* ScalesOfInt4(Byte* plane, std::int64_t block_size, std::int64_t dim) {
  using Half = std::conditional_t<std::is_const_v<Byte>, const std::uint16_t, std::uint16_t>;
  return reinterpret_cast<Half*>(plane + CodeBytes(KvType::kInt4, block_size * dim));
}

}  // namespace carousel
