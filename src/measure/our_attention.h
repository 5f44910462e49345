// SPDX-License-Identifier: Apache-2.0
// src/attention as a contender.
#pragma once

#include <cstddef>
#include <cstdint>
#include <memory>
#include <span>
#include <vector>

#include "attention/paged_attention.h"
#include "base/aligned_buffer.h"
#include "cache/block_shape.h"
#include "measure/attention_load.h"
#include "rope/rotation_table.h"

namespace carousel {

// The filled blocks of all layers, which contenders that differ in shifts alone can share.
class OurCaches {
 public:
  // Throws std::bad_alloc.
  OurCaches(const AttentionLoad& load, KvType type);

  const BlockShape& shape() const { return shape_; }
  std::int64_t layers() const { return layers_; }  // all copies together
  std::int64_t blocks_per_layer() const { return blocks_per_layer_; }
  std::int64_t bytes_per_layer() const {
    return blocks_per_layer_ * static_cast<std::int64_t>(shape_.bytes());
  }
  // Of all layers, one after another.
  std::span<const std::byte> memory() const { return {memory_.data(), memory_.size()}; }
  const std::byte* block(std::int64_t layer, std::int64_t index) const {
    return memory_.data() + layer * bytes_per_layer() +
           index * static_cast<std::int64_t>(shape_.bytes());
  }

 private:
  BlockShape shape_;
  std::int64_t blocks_per_layer_ = 0;
  std::int64_t layers_ = 0;
  AlignedBuffer<std::byte> memory_;  // [layers, blocks_per_layer, block bytes]
};

inline constexpr std::int64_t kNoShifts = 0;
inline constexpr std::int64_t kShiftInEveryBlock = -1;

// A run includes the rotation of the queries, and the attention mass that eviction decides by: of
// the last eight queries, which is what the engine counts by default. The caches hold the new
// tokens already.
class OurAttention : public AttentionContender {
 public:
  // `shifts`: into how many runs of blocks with a shift of their own the context falls, oldest
  // farthest; at most one per block. `load` outlives this.
  OurAttention(const AttentionLoad& load, std::shared_ptr<const OurCaches> caches,
               std::int64_t shifts);

  void Run() override;
  std::vector<float> Output() const override { return out_; }

 private:
  const AttentionLoad& load_;
  std::shared_ptr<const OurCaches> caches_;
  RotationTable rotation_;
  std::vector<AttentionBlock> blocks_;  // [layers, blocks_per_layer]
  std::vector<float> out_;              // [queries, H * value_dim]
  std::vector<float> mass_;             // [context]
  PagedAttention attention_;
};

}  // namespace carousel
