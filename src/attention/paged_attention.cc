// SPDX-License-Identifier: Apache-2.0
#include "attention/paged_attention.h"

#include <algorithm>
#include <cmath>
#include <cstring>
#include <limits>

#include "base/aligned_buffer.h"
#include "base/check.h"
#include "base/parallel.h"

#undef HWY_TARGET_INCLUDE
#define HWY_TARGET_INCLUDE "attention/paged_attention.cc"
#include <hwy/foreach_target.h>
// Highway's own headers come after foreach_target.
#include <hwy/contrib/math/math-inl.h>
#include <hwy/highway.h>

#include "attention/row_product-inl.h"
#include "attention/work.h"
#include "rope/rotate-inl.h"

HWY_BEFORE_NAMESPACE();
namespace carousel {
namespace HWY_NAMESPACE {

// Rotated and scaled queries of a tile, [rows, key_dim], for one shift.
void LoadQueries(const AttentionInput& input, const WorkItem& item, std::int64_t shift_blocks,
                 float* to) {
  const AttentionLayerSpec& layer = *input.layer;
  const std::int64_t group = layer.query_heads / layer.kv_heads;
  const bool rotate = input.rotation != nullptr && shift_blocks != 0;
  for (std::int64_t row = item.first_row; row < item.last_row; ++row) {
    const std::int64_t query = row / group;
    const std::int64_t head = item.kv_head * group + row % group;
    const float* from = input.q + (query * layer.query_heads + head) * layer.key_dim;
    float* row_to = to + (row - item.first_row) * layer.key_dim;
    if (rotate) {
      RotateVectorInl(input.rotation->rope(), input.rotation->row(shift_blocks), layer.key_dim,
                      from, row_to);
      for (std::int64_t i = 0; i < layer.key_dim; ++i) row_to[i] *= layer.scale;
    } else {
      for (std::int64_t i = 0; i < layer.key_dim; ++i) row_to[i] = from[i] * layer.scale;
    }
  }
}

// Soft cap, then ALiBi, on a row of one block's scores. `distance` is the query's from the block's
// first token.
void AdjustScores(const AttentionLayerSpec& layer, std::int64_t head, std::int64_t distance,
                  std::int64_t tokens, float* scores) {
  if (layer.soft_cap > 0.0F) {
    for (std::int64_t t = 0; t < tokens; ++t) {
      scores[t] = layer.soft_cap * std::tanh(scores[t] / layer.soft_cap);
    }
  }
  if (!layer.alibi_slopes.empty()) {
    const float slope = layer.alibi_slopes[static_cast<std::size_t>(head)];
    for (std::int64_t t = 0; t < tokens; ++t) scores[t] -= slope * static_cast<float>(distance - t);
  }
}

// Hides what a row may not see of one block: slots outside the query's visible range get -infinity.
void MaskScores(const AttentionInput& input, const WorkItem& item, const AttentionBlock& block,
                std::int64_t columns, float* scores) {
  const AttentionLayerSpec& layer = *input.layer;
  const std::int64_t group = layer.query_heads / layer.kv_heads;
  const bool adjust = layer.soft_cap > 0.0F || !layer.alibi_slopes.empty();
  const std::int64_t block_size = input.shape->block_size;
  for (std::int64_t row = item.first_row; row < item.last_row; ++row) {
    const std::int64_t query = row / group;
    float* row_scores = scores + (row - item.first_row) * columns;
    if (adjust) {
      AdjustScores(layer, item.kv_head * group + row % group,
                   (input.first_query_attention + query) - block.attention, block.tokens,
                   row_scores);
    }
    const VisibleSlots visible = SlotsVisibleTo(layer, block, input.first_query_logical + query);
    for (std::int64_t t = 0; t < visible.begin; ++t)
      row_scores[t] = -std::numeric_limits<float>::infinity();
    for (std::int64_t t = visible.end; t < block_size; ++t) {
      row_scores[t] = -std::numeric_limits<float>::infinity();
    }
  }
}

// Turns a row of scores into exp(score - largest), in place, and returns the state of the softmax.
SoftmaxState Exponentiate(float* scores, std::int64_t columns) {
  const hn::CappedTag<float, 8> d;  // block_size is a multiple of 8
  const auto lanes = static_cast<std::int64_t>(hn::Lanes(d));
  auto largest_lanes = hn::Set(d, -std::numeric_limits<float>::infinity());
  for (std::int64_t i = 0; i < columns; i += lanes) {
    largest_lanes = hn::Max(largest_lanes, hn::LoadU(d, scores + i));
  }
  SoftmaxState state;
  state.largest = hn::GetLane(hn::MaxOfLanes(d, largest_lanes));
  if (state.largest == -std::numeric_limits<float>::infinity()) {  // nothing is visible
    std::memset(scores, 0, static_cast<std::size_t>(columns) * sizeof(float));
    return state;
  }
  const auto shift = hn::Set(d, state.largest);
  auto sum = hn::Zero(d);
  for (std::int64_t i = 0; i < columns; i += lanes) {
    const auto weight = hn::Exp(d, hn::Sub(hn::LoadU(d, scores + i), shift));
    hn::StoreU(weight, d, scores + i);
    sum = hn::Add(sum, weight);
  }
  state.sum = hn::GetLane(hn::SumOfLanes(d, sum));
  return state;
}

template <class KeyElement>
void ScoreBlocks(const AttentionInput& input, const WorkItem& item, float* queries, float* scores) {
  const BlockShape& shape = *input.shape;
  const std::int64_t rows = item.last_row - item.first_row;
  const std::int64_t columns = (item.last_block - item.first_block) * shape.block_size;
  std::int64_t loaded_shift = 0;
  bool loaded = false;
  for (std::int64_t b = item.first_block; b < item.last_block; ++b) {
    const AttentionBlock& block = input.blocks[static_cast<std::size_t>(b)];
    if (!loaded || block.shift_blocks != loaded_shift) {
      LoadQueries(input, item, block.shift_blocks, queries);
      loaded_shift = block.shift_blocks;
      loaded = true;
    }
    float* block_scores = scores + (b - item.first_block) * shape.block_size;
    RowProduct(queries, input.layer->key_dim, rows, input.layer->key_dim,
               reinterpret_cast<const KeyElement*>(block.data + shape.key_offset(item.kv_head)),
               shape.block_size, shape.block_size, block_scores, columns, false);
    if (NeedsMask(input, item, block)) MaskScores(input, item, block, columns, block_scores);
  }
}

template <class ValueElement>
void WeighValues(const AttentionInput& input, const WorkItem& item, const float* weights,
                 float* out) {
  const BlockShape& shape = *input.shape;
  const std::int64_t rows = item.last_row - item.first_row;
  const std::int64_t columns = (item.last_block - item.first_block) * shape.block_size;
  for (std::int64_t b = item.first_block; b < item.last_block; ++b) {
    const AttentionBlock& block = input.blocks[static_cast<std::size_t>(b)];
    // Slots that were never written may hold anything, NaN too: they are not read.
    RowProduct(weights + (b - item.first_block) * shape.block_size, columns, rows, block.tokens,
               reinterpret_cast<const ValueElement*>(block.data + shape.value_offset(item.kv_head)),
               input.layer->value_dim, input.layer->value_dim, out, input.layer->value_dim, true);
  }
}

// One work item, from queries to a partial output: see WorkItem and PartialOutput.
void RunItem(const AttentionInput& input, const WorkItem& item, const PartialOutput& to) {
  thread_local AlignedBuffer<float> queries;  // [rows, key_dim]
  thread_local AlignedBuffer<float> scores;   // [rows, columns]
  const std::int64_t rows = item.last_row - item.first_row;
  const std::int64_t columns = (item.last_block - item.first_block) * input.shape->block_size;
  queries.Reserve(static_cast<std::size_t>(rows * input.layer->key_dim));
  scores.Reserve(static_cast<std::size_t>(rows * columns));

  if (input.shape->key_type == KvType::kF16) {
    ScoreBlocks<hwy::float16_t>(input, item, queries.data(), scores.data());
  } else {
    ScoreBlocks<float>(input, item, queries.data(), scores.data());
  }
  for (std::int64_t row = 0; row < rows; ++row) {
    to.states[row] = Exponentiate(scores.data() + row * columns, columns);
  }
  KeepCountedWeights(input, item, scores.data(), to);

  std::memset(to.sums, 0, static_cast<std::size_t>(rows * input.layer->value_dim) * sizeof(float));
  if (input.shape->value_type == KvType::kF16) {
    WeighValues<hwy::float16_t>(input, item, scores.data(), to.sums);
  } else {
    WeighValues<float>(input, item, scores.data(), to.sums);
  }
}

}  // namespace HWY_NAMESPACE
}  // namespace carousel
HWY_AFTER_NAMESPACE();

#if HWY_ONCE
namespace carousel {

HWY_EXPORT(RunItem);

// Everything that outlives a work item. Sizes in floats unless the element says otherwise.
struct PagedAttention::Scratch {
  std::vector<WorkItem> items;
  AlignedBuffer<float> sums;             // [items, tile_rows, value_dim]
  AlignedBuffer<SoftmaxState> states;    // [items, tile_rows]
  AlignedBuffer<float> counted_weights;  // [kv_heads, counted_rows, blocks * block_size]
  AlignedBuffer<float> counted_factors;  // [kv_heads, counted_rows, splits]
};

PagedAttention::PagedAttention() : scratch_(std::make_unique<Scratch>()) {}
PagedAttention::~PagedAttention() = default;
PagedAttention::PagedAttention(PagedAttention&&) noexcept = default;
PagedAttention& PagedAttention::operator=(PagedAttention&&) noexcept = default;

namespace {

// The weight that each split's part gets in the whole softmax of one row (Milakov and Gimelshein
// 2018: online softmax; the splits' states merge like its steps). A head's sink joins the sum and
// has no value.
SoftmaxState MergeStates(const AttentionLayerSpec& layer, std::int64_t head,
                         const SoftmaxState* states, std::int64_t splits, std::int64_t stride) {
  SoftmaxState whole;
  if (!layer.sinks.empty()) {
    whole.largest = layer.sinks[static_cast<std::size_t>(head)];
    whole.sum = 1.0F;
  }
  for (std::int64_t split = 0; split < splits; ++split) {
    const SoftmaxState& part = states[split * stride];
    if (part.sum == 0.0F) continue;
    const float largest = std::max(whole.largest, part.largest);
    const float whole_scale = whole.sum == 0.0F ? 0.0F : std::exp(whole.largest - largest);
    whole.sum = whole.sum * whole_scale + part.sum * std::exp(part.largest - largest);
    whole.largest = largest;
  }
  return whole;
}

}  // namespace

void PagedAttention::Run(const AttentionInput& input, const AttentionOutput& output) {
  const AttentionLayerSpec& layer = *input.layer;
  const std::int64_t group = layer.query_heads / layer.kv_heads;
  const std::int64_t all_columns =
      static_cast<std::int64_t>(input.blocks.size()) * input.shape->block_size;
  const WorkPlan plan = PlanWork(input, ParallelWidth(), &scratch_->items);
  const auto items = static_cast<std::int64_t>(scratch_->items.size());
  const std::int64_t counted_rows = input.counted_queries * group;
  CAROUSEL_CHECK_LE(input.counted_queries, input.queries);

  scratch_->sums.Reserve(static_cast<std::size_t>(items * plan.tile_rows * layer.value_dim));
  scratch_->states.Reserve(static_cast<std::size_t>(items * plan.tile_rows));
  scratch_->counted_weights.Reserve(
      static_cast<std::size_t>(layer.kv_heads * counted_rows * all_columns));
  scratch_->counted_factors.Reserve(
      static_cast<std::size_t>(layer.kv_heads * counted_rows * plan.splits));
  float* counted_weights = scratch_->counted_weights.data();
  float* counted_factors = scratch_->counted_factors.data();

  const auto run_item = HWY_DYNAMIC_DISPATCH(RunItem);
  ParallelFor(items, [&](std::int64_t i) {
    const WorkItem& item = scratch_->items[static_cast<std::size_t>(i)];
    PartialOutput to;
    to.sums = scratch_->sums.data() + i * plan.tile_rows * layer.value_dim;
    to.states = scratch_->states.data() + i * plan.tile_rows;
    to.counted_weights = counted_weights + item.kv_head * counted_rows * all_columns;
    to.columns = all_columns;
    run_item(input, item, to);
  });

  // Items of one tile lie side by side, one per split: merge them into the output rows.
  ParallelFor(items / plan.splits, [&](std::int64_t tile) {
    const std::int64_t first = tile * plan.splits;
    const WorkItem& item = scratch_->items[static_cast<std::size_t>(first)];
    const std::int64_t part_stride = plan.tile_rows * layer.value_dim;
    for (std::int64_t row = item.first_row; row < item.last_row; ++row) {
      const std::int64_t head = item.kv_head * group + row % group;
      const SoftmaxState* states =
          scratch_->states.data() + first * plan.tile_rows + (row - item.first_row);
      const float* sums =
          scratch_->sums.data() + first * part_stride + (row - item.first_row) * layer.value_dim;
      const SoftmaxState whole = MergeStates(layer, head, states, plan.splits, plan.tile_rows);
      float* out = output.out + (row / group * layer.query_heads + head) * layer.value_dim;
      std::memset(out, 0, static_cast<std::size_t>(layer.value_dim) * sizeof(float));
      const std::int64_t counted = row - (input.queries * group - counted_rows);
      for (std::int64_t split = 0; split < plan.splits; ++split) {
        const SoftmaxState& part = states[split * plan.tile_rows];
        const float factor =
            part.sum == 0.0F ? 0.0F : std::exp(part.largest - whole.largest) / whole.sum;
        for (std::int64_t d = 0; d < layer.value_dim; ++d) {
          out[d] += factor * sums[split * part_stride + d];
        }
        if (counted >= 0) {
          counted_factors[(item.kv_head * counted_rows + counted) * plan.splits + split] = factor;
        }
      }
    }
  });

  if (input.counted_queries == 0) return;
  CAROUSEL_CHECK_EQ(static_cast<std::int64_t>(output.token_mass.size()), all_columns);
  std::fill(output.token_mass.begin(), output.token_mass.end(), 0.0F);
  for (std::int64_t row = 0; row < layer.kv_heads * counted_rows; ++row) {
    const float* weights = counted_weights + row * all_columns;
    for (std::int64_t split = 0; split < plan.splits; ++split) {
      const float factor = counted_factors[row * plan.splits + split];
      const BlockRange range =
          SplitRange(static_cast<std::int64_t>(input.blocks.size()), plan.splits, split);
      const std::int64_t end = range.last * input.shape->block_size;
      for (std::int64_t c = range.first * input.shape->block_size; c < end; ++c) {
        output.token_mass[static_cast<std::size_t>(c)] += factor * weights[c];
      }
    }
  }
}

}  // namespace carousel
#endif
