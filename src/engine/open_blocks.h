// SPDX-License-Identifier: Apache-2.0
// The newest block of each cache group of one sequence, in f32, where keys can only be coded a
// whole block at a time. A block that a step begins lies beside the one that was begun before, so
// that a step which fails leaves the latter whole.
#pragma once

#include <cstdint>
#include <cstring>
#include <vector>

#include "base/aligned_buffer.h"
#include "cache/block_shape.h"

namespace carousel {

class OpenBlocks {
 public:
  // One shape per group; none: blocks are coded token by token, and there are no open ones.
  explicit OpenBlocks(const std::vector<BlockShape>& shapes) {
    for (const BlockShape& shape : shapes) {
      for (auto& side : sides_) side.emplace_back(shape.bytes());
      bytes_ += 2 * static_cast<std::int64_t>(shape.bytes());
    }
  }

  bool exist() const { return bytes_ > 0; }
  std::int64_t bytes() const { return bytes_; }
  // The block that was begun before the step at hand, and the one that the step begins.
  std::byte* begun(std::int64_t group) { return data(begun_, group); }
  std::byte* next(std::int64_t group) { return data(1 - begun_, group); }
  // The step has begun another block and not filled it: from now on it was begun before.
  void Turn() { begun_ = 1 - begun_; }
  // What another sequence with the same shapes has begun.
  void CopyFrom(const OpenBlocks& from) {
    for (std::size_t group = 0; group < sides_[0].size(); ++group) {
      const auto& begun = from.sides_[from.begun_][group];
      std::memcpy(sides_[begun_][group].data(), begun.data(), begun.size());
    }
  }

 private:
  std::byte* data(std::size_t side, std::int64_t group) {
    return sides_[side][static_cast<std::size_t>(group)].data();
  }

  std::vector<AlignedBuffer<std::byte>> sides_[2];  // [groups] each
  std::size_t begun_ = 0;
  std::int64_t bytes_ = 0;
};

}  // namespace carousel
