// SPDX-License-Identifier: Apache-2.0
// What attention fetches into the cache while it multiplies a plane: the plane that it reads some
// 12 KB later.
//
// Per-target include guard, as Highway asks of code that is compiled once per instruction set.
#if defined(CAROUSEL_ATTENTION_PLANES_AHEAD_INL_H_) == defined(HWY_TARGET_TOGGLE)
#ifdef CAROUSEL_ATTENTION_PLANES_AHEAD_INL_H_
#undef CAROUSEL_ATTENTION_PLANES_AHEAD_INL_H_
#else
#define CAROUSEL_ATTENTION_PLANES_AHEAD_INL_H_
#endif

#include <hwy/highway.h>

#include <algorithm>
#include <cstddef>
#include <cstdint>

#include "attention/paged_attention.h"
#include "attention/row_product-inl.h"
#include "attention/work.h"
#include "base/prefetch.h"
#include "cache/block_shape.h"

HWY_BEFORE_NAMESPACE();
namespace carousel {
namespace HWY_NAMESPACE {

// Enough bytes to cover the time that memory takes. By measurement (docs/decisions/0012).
inline constexpr std::size_t kBytesAhead = 12 * 1024;

// The planes of a group are read block by block, and within a block head by head, which is how they
// lie in memory: first all keys, then all values.
class PlanesAhead {
 public:
  // Both outlive this.
  PlanesAhead(const AttentionInput& input, const WorkGroup& group)
      : input_(input),
        group_(group),
        first_block_(group.item(0).first_block),
        last_block_(group.item(0).last_block),
        first_level_(FetchesIntoFirstLevel()) {
    if (first_block_ == last_block_) return;
    const BlockShape& shape = *BlockAt(first_block_).shape;
    keys_ = DistanceOf(shape.key_plane_bytes());
    values_ = DistanceOf(shape.value_plane_bytes());
  }

  // Beside the keys of an item's block: later keys, then the first values.
  Ahead BesideKeys(std::int64_t block, std::int64_t item) const {
    Plane next = After(block, item, keys_);
    if (next.block < last_block_) return KeysOf(next);
    next.block = std::min(first_block_ + next.block - last_block_, block);
    return ValuesOf(next);
  }

  // Beside its values: later values, then the keys behind the group's blocks, which the thread is
  // likely to read next.
  Ahead BesideValues(std::int64_t block, std::int64_t item) const {
    const Plane next = After(block, item, values_);
    if (next.block < last_block_) return ValuesOf(next);
    return next.block < std::ssize(input_.blocks) ? KeysOf(next) : Ahead{};
  }

 private:
  struct Plane {
    std::int64_t block = 0;
    std::int64_t item = 0;
  };

  const AttentionBlock& BlockAt(std::int64_t block) const {
    return input_.blocks[static_cast<std::size_t>(block)];
  }
  std::int64_t HeadOf(const AttentionBlock& block, std::int64_t item) const {
    return block.first_head + group_.item(item).kv_head;
  }
  Plane DistanceOf(std::size_t plane_bytes) const {
    const auto planes =
        static_cast<std::int64_t>(std::max<std::size_t>(1, kBytesAhead / plane_bytes));
    return {planes / group_.count, planes % group_.count};
  }
  Plane After(std::int64_t block, std::int64_t item, const Plane& distance) const {
    Plane next{block + distance.block, item + distance.item};
    if (next.item >= group_.count) {
      next.item -= group_.count;
      ++next.block;
    }
    return next;
  }
  Ahead At(const AttentionBlock& block, std::size_t offset, std::size_t bytes) const {
    return {block.data + offset, static_cast<std::int64_t>(bytes), first_level_};
  }
  Ahead KeysOf(const Plane& plane) const {
    const AttentionBlock& from = BlockAt(plane.block);
    return At(from, from.shape->key_offset(HeadOf(from, plane.item)),
              from.shape->key_plane_bytes());
  }
  Ahead ValuesOf(const Plane& plane) const {
    const AttentionBlock& from = BlockAt(plane.block);
    return At(from, from.shape->value_offset(HeadOf(from, plane.item)),
              from.shape->value_plane_bytes());
  }

  const AttentionInput& input_;
  const WorkGroup& group_;
  std::int64_t first_block_;
  std::int64_t last_block_;
  bool first_level_;
  Plane keys_;  // distances
  Plane values_;
};

}  // namespace HWY_NAMESPACE
}  // namespace carousel
HWY_AFTER_NAMESPACE();

#endif  // per-target include guard
