// SPDX-License-Identifier: Apache-2.0
#include "attention/work.h"

#include <algorithm>
#include <cstring>

namespace carousel {
namespace {

// A longer context is split: 96 rows over 4,096 tokens. More than some cores' second-level cache
// holds, and yet faster than splits that would fit (docs/decisions/0009).
constexpr std::int64_t kTileScoreBytes = 1536 * 1024;
// Whole multiples of the inner loop's rows on every instruction set (12 and 6).
constexpr std::int64_t kMostTileRows = 96;
// Up to so many rows of all KV heads together, a block's keys cost more to fetch than to multiply.
constexpr std::int64_t kFewRows = 64;
// Below this many blocks a split costs more than it gives.
constexpr std::int64_t kFewestSplitBlocks = 4;
// Of numbers that a group of few rows reads: contexts of up to so many times kEvenSplits are cut
// into pieces of this size, longer ones grow by one piece for each kLongSplitNumbers more.
constexpr std::int64_t kSplitNumbers = 48 * 1024;
constexpr std::int64_t kEvenSplits = 4;
constexpr std::int64_t kLongSplitNumbers = 512 * 1024;
// With many rows, so many groups at least, where the context allows.
constexpr std::int64_t kFewestGroups = 4;

std::int64_t DivideUp(std::int64_t number, std::int64_t by) { return (number + by - 1) / by; }

// Splits of a tile's context that let several threads share it.
std::int64_t SplitsToShare(const AttentionInput& input, bool few_rows, std::int64_t parallel) {
  if (!few_rows) return DivideUp(kFewestGroups, parallel);
  const std::int64_t numbers = std::ssize(input.blocks) * input.block_size * input.kv_heads *
                               (input.layer->key_dim + input.layer->value_dim);
  return std::min(DivideUp(numbers, kSplitNumbers), kEvenSplits) + numbers / kLongSplitNumbers;
}

}  // namespace

BlockRange SplitRange(std::int64_t blocks, std::int64_t splits, std::int64_t split) {
  return {.first = blocks * split / splits, .last = blocks * (split + 1) / splits};
}

VisibleSlots SlotsVisibleTo(const AttentionLayerSpec& layer, const AttentionBlock& block,
                            Position query) {
  const std::int64_t distance = query - block.logical;  // from the block's first token
  VisibleSlots visible;
  visible.end = std::clamp<std::int64_t>(distance + 1, 0, block.tokens);
  if (layer.sliding_window > 0) {
    visible.begin = std::clamp<std::int64_t>(distance + 1 - layer.sliding_window, 0, visible.end);
  }
  return visible;
}

bool NeedsMask(const AttentionInput& input, const WorkItem& item, const AttentionBlock& block) {
  const AttentionLayerSpec& layer = *input.layer;
  if (layer.soft_cap > 0.0F || !layer.alibi_slopes.empty()) return true;
  const std::int64_t group = GroupOf(layer);
  const Position first = input.first_query_logical + item.first_row / group;
  const Position last = input.first_query_logical + (item.last_row - 1) / group;
  // The first query sees least of the future, the last one least of the past.
  return SlotsVisibleTo(layer, block, first).end < input.block_size ||
         SlotsVisibleTo(layer, block, last).begin > 0;
}

WorkPlan PlanWork(const AttentionInput& input, std::vector<WorkItem>* items) {
  const std::int64_t group = GroupOf(*input.layer);
  const auto blocks = static_cast<std::int64_t>(input.blocks.size());
  const std::int64_t columns = blocks * input.block_size;
  const std::int64_t rows = input.queries * group;
  WorkPlan plan;
  plan.tile_rows = std::min(kMostTileRows, rows);
  const std::int64_t tiles = (rows + plan.tile_rows - 1) / plan.tile_rows;
  const std::int64_t kv_heads = input.kv_heads;
  const bool few_rows = tiles == 1 && kv_heads * rows <= kFewRows;
  plan.tiles = tiles;
  plan.group_heads = few_rows ? kv_heads : 1;
  const std::int64_t parallel = kv_heads / plan.group_heads * tiles;
  const std::int64_t useful = std::max<std::int64_t>(1, blocks / kFewestSplitBlocks);
  const std::int64_t score_bytes =
      plan.group_heads * plan.tile_rows * columns * static_cast<std::int64_t>(sizeof(float));
  const std::int64_t fitting = DivideUp(score_bytes, kTileScoreBytes);
  plan.splits = std::clamp<std::int64_t>(
      std::max(SplitsToShare(input, few_rows, parallel), fitting), 1, useful);
  plan.groups = parallel * plan.splits;
  for (std::int64_t head = 0; head < kv_heads; ++head) {
    for (std::int64_t tile = tiles - 1; tile >= 0; --tile) {  // the longest rows first
      WorkItem item;
      item.kv_head = head;
      item.first_row = tile * plan.tile_rows;
      item.last_row = std::min(rows, item.first_row + plan.tile_rows);
      const Position last_query = input.first_query_logical + (item.last_row - 1) / group;
      for (std::int64_t split = 0; split < plan.splits; ++split) {
        const BlockRange range = SplitRange(blocks, plan.splits, split);
        item.first_block = range.first;
        item.last_block = range.last;
        item.covered_last_block = range.last;
        // Blocks that begin after the tile's last query are its future.
        while (item.last_block > item.first_block &&
               last_query < input.blocks[static_cast<std::size_t>(item.last_block - 1)].logical) {
          --item.last_block;
        }
        items->push_back(item);
      }
    }
  }
  return plan;
}

void KeepCountedWeights(const AttentionInput& input, const WorkItem& item, const float* weights,
                        std::int64_t stride, const PartialOutput& to) {
  const std::int64_t group = GroupOf(*input.layer);
  const std::int64_t first_counted = (input.queries - input.counted_queries) * group;
  const std::int64_t block_size = input.block_size;
  const std::int64_t columns = (item.last_block - item.first_block) * block_size;
  for (std::int64_t row = std::max(item.first_row, first_counted); row < item.last_row; ++row) {
    float* kept = to.counted_weights + (row - first_counted) * to.columns;
    std::memcpy(kept + item.first_block * block_size, weights + (row - item.first_row) * stride,
                static_cast<std::size_t>(columns) * sizeof(float));
    const std::int64_t covered_end = item.covered_last_block * block_size;
    for (std::int64_t c = item.last_block * block_size; c < covered_end; ++c) kept[c] = 0.0F;
  }
}

}  // namespace carousel
