// SPDX-License-Identifier: Apache-2.0
// How one layer's attention is cut into work items that run side by side, and what they leave
// behind.
#pragma once

#include <cstdint>
#include <limits>
#include <vector>

#include "attention/paged_attention.h"

namespace carousel {

// Query heads that read one KV head.
inline std::int64_t GroupOf(const AttentionLayerSpec& layer) {
  return layer.query_heads / layer.kv_heads;
}

// A row is one query of one query head; the rows of a KV head are its queries times its query
// heads, the heads of one query side by side: row = query * group + head within the group.
struct WorkItem {
  std::int64_t kv_head = 0;    // of the task's
  std::int64_t first_row = 0;  // half-open
  std::int64_t last_row = 0;
  std::int64_t first_block = 0;  // half-open: this split's part of what the tile can see
  std::int64_t last_block = 0;
  // Where the split ends: blocks [last_block, covered_last_block) are the tile's future.
  std::int64_t covered_last_block = 0;
};

// The running state of a softmax over part of a row.
struct SoftmaxState {
  float largest = -std::numeric_limits<float>::infinity();
  float sum = 0.0F;  // of exp(score - largest); 0: nothing seen
};

// Where an item leaves its part.
struct PartialOutput {
  float* sums = nullptr;  // [rows, value_dim]: sum of exp(score - largest) v; null: not wanted
  SoftmaxState* states = nullptr;    // [rows]
  float* counted_weights = nullptr;  // this KV head's [counted rows, columns]: exp(score - largest)
  std::int64_t columns = 0;          // blocks * block_size
};

// Items of the same rows and blocks that one thread runs together, block by block: they differ in
// the KV head.
struct WorkGroup {
  const WorkItem* items = nullptr;  // all of the plan
  std::int64_t first = 0;           // items first, first + stride, ...
  std::int64_t stride = 0;
  std::int64_t count = 0;

  const WorkItem& item(std::int64_t i) const { return items[first + i * stride]; }
};

// Item (head, tile, split) is number (head * tiles + tile) * splits + split.
struct WorkPlan {
  std::int64_t tile_rows = 0;  // most rows of an item
  std::int64_t tiles = 1;
  std::int64_t splits = 1;       // items per tile; they lie side by side
  std::int64_t group_heads = 1;  // items per group; the number of KV heads, or 1
  std::int64_t groups = 0;

  WorkGroup group(std::int64_t i, const WorkItem* items) const {
    const std::int64_t items_per_head = tiles * splits;
    return {.items = items,
            .first = i / items_per_head * group_heads * items_per_head + i % items_per_head,
            .stride = items_per_head,
            .count = group_heads};
  }
  // The item of the first split of the tile that a row of a KV head is in.
  std::int64_t item_of(std::int64_t kv_head, std::int64_t row) const {
    return (kv_head * tiles + tiles - 1 - row / tile_rows) * splits;  // the longest rows first
  }
};

struct BlockRange {
  std::int64_t first = 0;
  std::int64_t last = 0;
};

struct VisibleSlots {
  std::int64_t begin = 0;
  std::int64_t end = 0;
};

// Part `split` of `splits` nearly equal parts of [0, blocks).
BlockRange SplitRange(std::int64_t blocks, std::int64_t splits, std::int64_t split);

// Which slots of a block a query at this logical position may see: written, not in its future, and
// inside the layer's sliding window (which counts the stream's tokens, kept or not, as the model
// does).
VisibleSlots SlotsVisibleTo(const AttentionLayerSpec& layer, const AttentionBlock& block,
                            Position query);

// Whether any row of the item sees less than all of the block, or scores are adjusted.
bool NeedsMask(const AttentionInput& input, const WorkItem& item, const AttentionBlock& block);

// Appends tiles of rows times splits of the context to `items`. With few rows, as in decode, all KV
// heads of a block are read together, because that is how they lie in memory and memory is what
// decode waits for; with many, a head's tile stays in the cache.
//
// The order in which a row's parts are added hangs on where its context is split. So that hangs on
// the task alone: neither what runs beside it nor the number of threads changes a bit of what it
// gives (docs/decisions/0021-splits.md).
WorkPlan PlanWork(const AttentionInput& input, std::vector<WorkItem>* items);

// Copies the item's rows that belong to counted queries to where the mass is gathered from; the
// split's blocks in the tile's future become 0. `weights` are [rows, stride].
void KeepCountedWeights(const AttentionInput& input, const WorkItem& item, const float* weights,
                        std::int64_t stride, const PartialOutput& to);

}  // namespace carousel
