// SPDX-License-Identifier: Apache-2.0
// What one block of a cache group holds, and where: the offset arithmetic, in one place.
#pragma once

#include <cstddef>
#include <cstdint>

#include "base/aligned_buffer.h"
#include "cache/plane_layout.h"
#include "carousel/enums.h"

namespace carousel {

// A block is [kv_heads] key planes, then [kv_heads] value planes, each plane aligned.
struct BlockShape {
  std::int64_t block_size = 0;  // tokens
  std::int64_t kv_heads = 0;
  std::int64_t key_dim = 0;
  std::int64_t value_dim = 0;
  KvType key_type = KvType::kF32;
  KvType value_type = KvType::kF32;

  std::size_t key_plane_bytes() const {
    return RoundUpToAlignment(KeyPlaneBytes(key_type, block_size, key_dim));
  }
  std::size_t value_plane_bytes() const {
    return RoundUpToAlignment(ValuePlaneBytes(value_type, block_size, value_dim));
  }
  std::size_t key_offset(std::int64_t head) const {
    return static_cast<std::size_t>(head) * key_plane_bytes();
  }
  std::size_t value_offset(std::int64_t head) const {
    return static_cast<std::size_t>(kv_heads) * key_plane_bytes() +
           static_cast<std::size_t>(head) * value_plane_bytes();
  }
  std::size_t bytes() const { return value_offset(kv_heads); }

  friend bool operator==(const BlockShape&, const BlockShape&) = default;
};

}  // namespace carousel
