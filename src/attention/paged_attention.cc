// SPDX-License-Identifier: Apache-2.0
#include "attention/paged_attention.h"

#include <algorithm>
#include <cmath>
#include <cstring>
#include <limits>

#include "base/aligned_buffer.h"
#include "base/check.h"
#include "base/cpu_target.h"
#include "base/parallel.h"
#include "cache/plane_layout.h"

#undef HWY_TARGET_INCLUDE
#define HWY_TARGET_INCLUDE "attention/paged_attention.cc"
#include <hwy/foreach_target.h>
// Highway's own headers come after foreach_target.
#include <hwy/highway.h>

#include "attention/exponential-inl.h"
#include "attention/row_product-inl.h"
#include "attention/work.h"
#include "rope/rotate-inl.h"

HWY_BEFORE_NAMESPACE();
namespace carousel {
namespace HWY_NAMESPACE {

// A tile's queries, [rows, key_dim], scaled and as the model rotated them.
void LoadQueries(const AttentionInput& input, const WorkItem& item, float* to) {
  const AttentionLayerSpec& layer = *input.layer;
  const std::int64_t group = layer.query_heads / layer.kv_heads;
  for (std::int64_t row = item.first_row; row < item.last_row; ++row, to += layer.key_dim) {
    const std::int64_t query = row / group;
    const std::int64_t head = (input.first_kv_head + item.kv_head) * group + row % group;
    const float* from = input.q + (query * layer.query_heads + head) * layer.key_dim;
    for (std::int64_t i = 0; i < layer.key_dim; ++i) to[i] = from[i] * layer.scale;
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
  const std::int64_t block_size = input.block_size;
  for (std::int64_t row = item.first_row; row < item.last_row; ++row) {
    const std::int64_t query = row / group;
    float* row_scores = scores + (row - item.first_row) * columns;
    if (adjust) {
      AdjustScores(layer, (input.first_kv_head + item.kv_head) * group + row % group,
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

// Raises *largest to the largest of scores[i, columns), as far as whole vectors reach; returns the
// first not seen.
template <class D>
HWY_INLINE std::int64_t LargestOf(D d, const float* scores, std::int64_t i, std::int64_t columns,
                                  float* largest) {
  const auto lanes = static_cast<std::int64_t>(hn::Lanes(d));
  auto largest_lanes = hn::Set(d, *largest);
  for (; i + lanes <= columns; i += lanes) {
    largest_lanes = hn::Max(largest_lanes, hn::LoadU(d, scores + i));
  }
  *largest = hn::GetLane(hn::MaxOfLanes(d, largest_lanes));
  return i;
}

// scores <- exp(scores - largest), likewise, and adds them to *sum.
template <class D>
HWY_INLINE std::int64_t ExponentiateLanes(D d, float largest, float* scores, std::int64_t i,
                                          std::int64_t columns, float* sum) {
  const auto lanes = static_cast<std::int64_t>(hn::Lanes(d));
  const auto shift = hn::Set(d, largest);
  auto sums = hn::Zero(d);
  for (; i + lanes <= columns; i += lanes) {
    const auto weight = ExponentialOfNegative(d, hn::Sub(hn::LoadU(d, scores + i), shift));
    hn::StoreU(weight, d, scores + i);
    sums = hn::Add(sums, weight);
  }
  *sum += hn::GetLane(hn::SumOfLanes(d, sums));
  return i;
}

// Turns a row of scores into exp(score - largest), in place, and returns the state of the softmax.
// `columns` is a multiple of 8.
SoftmaxState Exponentiate(float* scores, std::int64_t columns) {
  const hn::ScalableTag<float> full;
  const hn::CappedTag<float, 8> eight;
  SoftmaxState state;
  std::int64_t i = LargestOf(full, scores, 0, columns, &state.largest);
  LargestOf(eight, scores, i, columns, &state.largest);
  if (state.largest == -std::numeric_limits<float>::infinity()) {  // nothing is visible
    std::memset(scores, 0, static_cast<std::size_t>(columns) * sizeof(float));
    return state;
  }
  i = ExponentiateLanes(full, state.largest, scores, 0, columns, &state.sum);
  ExponentiateLanes(eight, state.largest, scores, i, columns, &state.sum);
  return state;
}

inline constexpr std::int64_t kOffsetLanes = 8;

// What a thread needs for the work items of one group.
struct ItemScratch {
  AlignedBuffer<float> queries;  // [items, rows, key_dim], as the model rotated them
  AlignedBuffer<float> rotated;  // likewise, for the blocks at hand
  AlignedBuffer<float> scores;   // [items, rows, columns]
  // Queries or weights with a block's scales multiplied in: [2, rows, key_dim or block_size].
  AlignedBuffer<float> folded;
  AlignedBuffer<float> scales;   // a block's int4 scales and offsets as floats
  AlignedBuffer<float> offsets;  // [items, 2, rows, kOffsetLanes]: what int4 values' offsets add
};

void HalvesToFloats(const std::uint16_t* from, std::int64_t count, float* to) {
  const auto* halves = reinterpret_cast<const hwy::float16_t*>(from);
  const hn::ScalableTag<float> full;
  const hn::CappedTag<float, 1> one;
  const auto lanes = static_cast<std::int64_t>(hn::Lanes(full));
  std::int64_t i = 0;
  for (; i + lanes <= count; i += lanes) hn::StoreU(LoadElements(full, halves + i), full, to + i);
  for (; i < count; ++i) hn::StoreU(LoadElements(one, halves + i), one, to + i);
}

// folded = query * scales; returns query . offsets. The inner loop then sees codes alone:
// q . (s c + o) = (q s) . c + q . o.
float FoldKeyScales(const float* query, std::int64_t dim, const float* scales, const float* offsets,
                    float* folded) {
  const hn::ScalableTag<float> full;
  const auto lanes = static_cast<std::int64_t>(hn::Lanes(full));
  auto sums = hn::Zero(full);
  std::int64_t i = 0;
  for (; i + lanes <= dim; i += lanes) {
    const auto q = hn::LoadU(full, query + i);
    hn::StoreU(hn::Mul(q, hn::LoadU(full, scales + i)), full, folded + i);
    sums = hn::MulAdd(q, hn::LoadU(full, offsets + i), sums);
  }
  float total = hn::GetLane(hn::SumOfLanes(full, sums));
  for (; i < dim; ++i) {
    folded[i] = query[i] * scales[i];
    total += query[i] * offsets[i];
  }
  return total;
}

// to[row] = weights[row] * scales, over a block's tokens.
void FoldTokenScales(const float* weights, std::int64_t stride, std::int64_t rows,
                     std::int64_t tokens, const float* scales, std::int64_t to_stride, float* to) {
  const hn::CappedTag<float, 8> eight;
  const auto lanes = static_cast<std::int64_t>(hn::Lanes(eight));
  for (std::int64_t row = 0; row < rows; ++row, weights += stride, to += to_stride) {
    std::int64_t i = 0;
    for (; i + lanes <= tokens; i += lanes) {
      hn::StoreU(hn::Mul(hn::LoadU(eight, scales + i), hn::LoadU(eight, weights + i)), eight,
                 to + i);
    }
    for (; i < tokens; ++i) to[i] = scales[i] * weights[i];
  }
}

// totals[row] += weights * offsets, lane by lane, over a block's tokens; the lanes are summed when
// all blocks are through.
void AddTokenOffsets(const float* weights, std::int64_t stride, std::int64_t rows,
                     std::int64_t tokens, const float* offsets, float* totals) {
  const hn::CappedTag<float, kOffsetLanes> eight;
  const auto lanes = static_cast<std::int64_t>(hn::Lanes(eight));
  for (std::int64_t row = 0; row < rows; ++row, weights += stride, totals += kOffsetLanes) {
    std::int64_t i = 0;
    auto sums = hn::LoadU(eight, totals);
    for (; i + lanes <= tokens; i += lanes) {
      sums = hn::MulAdd(hn::LoadU(eight, offsets + i), hn::LoadU(eight, weights + i), sums);
    }
    hn::StoreU(sums, eight, totals);
    for (; i < tokens; ++i) totals[0] += offsets[i] * weights[i];
  }
}

// Planes are fetched so many bytes ahead of their use: enough to cover the time that memory takes,
// little enough to stay in the first-level cache until then. By measurement.
inline constexpr std::int64_t kBytesAhead = 12 * 1024;

// A plane of a group's items, counted in the order in which they are read: block by block, and
// within a block head by head, which is how they lie in memory.
struct PlaneIndex {
  std::int64_t block = 0;
  std::int64_t item = 0;
};

PlaneIndex PlaneAhead(const WorkGroup& group, std::int64_t block, std::int64_t item,
                      std::size_t plane_bytes) {
  const std::int64_t planes =
      std::max<std::int64_t>(1, kBytesAhead / static_cast<std::int64_t>(plane_bytes));
  return {block + (item + planes) / group.count, (item + planes) % group.count};
}

Ahead ValuesOf(const AttentionInput& input, const WorkGroup& group, PlaneIndex plane) {
  const AttentionBlock& from = input.blocks[static_cast<std::size_t>(plane.block)];
  return {from.data + from.shape->value_offset(from.first_head + group.item(plane.item).kv_head),
          static_cast<std::int64_t>(from.shape->value_plane_bytes())};
}

// What to fetch while the keys of a block are multiplied: later keys, then the first values.
Ahead KeysAhead(const AttentionInput& input, const WorkGroup& group, std::int64_t block,
                std::int64_t item) {
  const WorkItem& first = group.item(0);
  const BlockShape& shape = *input.blocks[static_cast<std::size_t>(block)].shape;
  PlaneIndex next = PlaneAhead(group, block, item, shape.key_plane_bytes());
  if (next.block >= first.last_block) {
    next.block = std::min(first.first_block + next.block - first.last_block, block);
    return ValuesOf(input, group, next);
  }
  const AttentionBlock& from = input.blocks[static_cast<std::size_t>(next.block)];
  return {from.data + from.shape->key_offset(from.first_head + group.item(next.item).kv_head),
          static_cast<std::int64_t>(from.shape->key_plane_bytes())};
}

// Likewise beside its values.
Ahead ValuesAhead(const AttentionInput& input, const WorkGroup& group, std::int64_t block,
                  std::int64_t item) {
  const BlockShape& shape = *input.blocks[static_cast<std::size_t>(block)].shape;
  const PlaneIndex next = PlaneAhead(group, block, item, shape.value_plane_bytes());
  return next.block < group.item(0).last_block ? ValuesOf(input, group, next) : Ahead{};
}

// multiply(elements) with a plane of one of the types that the inner loop reads as they are: all
// but int4.
template <class Multiply>
void WithElements(KvType type, const std::byte* plane, const Multiply& multiply) {
  switch (type) {
    case KvType::kF32:
      return multiply(reinterpret_cast<const float*>(plane));
    case KvType::kF16:
      return multiply(reinterpret_cast<const hwy::float16_t*>(plane));
    case KvType::kBf16:
      return multiply(reinterpret_cast<const hwy::bfloat16_t*>(plane));
    case KvType::kInt8:
      return multiply(reinterpret_cast<const std::int8_t*>(plane));
    case KvType::kInt4:
      break;
  }
  CAROUSEL_CHECK(false);
}

// scores[rows, block_size] = queries . the block's keys.
void ScoreBlock(const AttentionInput& input, const WorkItem& item, const AttentionBlock& block,
                const float* queries, std::int64_t columns, const Ahead& ahead, float* scores,
                ItemScratch* scratch) {
  const BlockShape& shape = *block.shape;
  const std::int64_t rows = item.last_row - item.first_row;
  const std::int64_t dim = shape.key_dim;
  const std::byte* plane = block.data + shape.key_offset(block.first_head + item.kv_head);
  LeftRows a{queries, queries, dim};
  ResultRows c{scores, columns, false, nullptr};
  if (shape.key_type == KvType::kInt4) {
    float* scales = scratch->scales.data();
    float* folded = scratch->folded.data();  // [2, rows, dim]
    HalvesToFloats(ScalesOfInt4(plane, input.block_size, dim), 4 * dim, scales);
    const std::int64_t half_block = input.block_size / 2;
    for (std::int64_t half = 0; half < 2; ++half) {
      for (std::int64_t row = 0; row < rows; ++row) {
        const float offset =
            FoldKeyScales(queries + row * dim, dim, scales + half * dim, scales + (2 + half) * dim,
                          folded + (half * rows + row) * dim);
        std::fill_n(scores + row * columns + half * half_block, half_block, offset);
      }
    }
    a.first = folded;
    a.second = folded + rows * dim;
    c.accumulate = true;
    const auto* codes = reinterpret_cast<const std::uint8_t*>(plane);
    return RowProduct(a, rows, dim, NibbleRows{codes, input.block_size, ahead}, c);
  }
  if (shape.key_type == KvType::kInt8) c.column_scale = ScalesOfInt8(plane, input.block_size, dim);
  WithElements(shape.key_type, plane, [&](const auto* elements) {
    RowProduct(a, rows, dim, ElementRows{elements, input.block_size, input.block_size, ahead}, c);
  });
}

void ScoreBlocks(const AttentionInput& input, const WorkGroup& group, ItemScratch* scratch) {
  const WorkItem& first = group.item(0);
  const std::int64_t rows = first.last_row - first.first_row;
  const std::int64_t dim = input.layer->key_dim;
  const std::int64_t columns = (first.last_block - first.first_block) * input.block_size;
  for (std::int64_t i = 0; i < group.count; ++i)
    LoadQueries(input, group.item(i), scratch->queries.data() + i * rows * dim);
  std::int64_t rotated_by = 0;
  for (std::int64_t b = first.first_block; b < first.last_block; ++b) {
    const AttentionBlock& block = input.blocks[static_cast<std::size_t>(b)];
    const bool rotate = input.rotation != nullptr && block.shift_blocks != 0;
    if (rotate && block.shift_blocks != rotated_by) {
      RotateRowsInl(input.rotation->rope(), input.rotation->row(block.shift_blocks), dim,
                    group.count * rows, scratch->queries.data(), scratch->rotated.data());
      rotated_by = block.shift_blocks;
    }
    const float* queries = (rotate ? scratch->rotated : scratch->queries).data();
    for (std::int64_t i = 0; i < group.count; ++i) {
      float* scores =
          scratch->scores.data() + i * rows * columns + (b - first.first_block) * input.block_size;
      ScoreBlock(input, group.item(i), block, queries + i * rows * dim, columns,
                 KeysAhead(input, group, b, i), scores, scratch);
      if (NeedsMask(input, group.item(i), block))
        MaskScores(input, group.item(i), block, columns, scores);
    }
  }
}

// out[rows, value_dim] += weights . the block's values. What int4 offsets add goes to `offsets`,
// [2, rows, kOffsetLanes]. Slots that were never written may hold anything, NaN too: they are not
// read.
void WeighBlock(const AttentionInput& input, const WorkItem& item, const AttentionBlock& block,
                const float* weights, std::int64_t columns, const Ahead& ahead, float* out,
                float* offsets, ItemScratch* scratch) {
  const BlockShape& shape = *block.shape;
  const std::int64_t rows = item.last_row - item.first_row;
  const std::int64_t dim = shape.value_dim;
  const std::byte* plane = block.data + shape.value_offset(block.first_head + item.kv_head);
  LeftRows a{weights, weights, columns};
  const ResultRows c{out, dim, true, nullptr};
  float* folded = scratch->folded.data();  // [1 or 2, rows, block_size]
  if (shape.value_type == KvType::kInt4) {
    float* scales = scratch->scales.data();
    HalvesToFloats(ScalesOfInt4(plane, input.block_size, dim), 4 * input.block_size, scales);
    for (std::int64_t half = 0; half < 2; ++half) {
      FoldTokenScales(weights, columns, rows, block.tokens, scales + half * input.block_size,
                      input.block_size, folded + half * rows * input.block_size);
      AddTokenOffsets(weights, columns, rows, block.tokens, scales + (2 + half) * input.block_size,
                      offsets + half * rows * kOffsetLanes);
    }
    a = {folded, folded + rows * input.block_size, input.block_size};
    const auto* codes = reinterpret_cast<const std::uint8_t*>(plane);
    return RowProduct(a, rows, block.tokens, NibbleRows{codes, dim, ahead}, c);
  }
  if (shape.value_type == KvType::kInt8) {
    FoldTokenScales(weights, columns, rows, block.tokens,
                    ScalesOfInt8(plane, input.block_size, dim), input.block_size, folded);
    a = {folded, folded, input.block_size};
  }
  WithElements(shape.value_type, plane, [&](const auto* elements) {
    RowProduct(a, rows, block.tokens, ElementRows{elements, dim, dim, ahead}, c);
  });
}

// Adds each row's sum of offsets to the half of the dimensions that it belongs to.
void AddOffsetTotals(const float* totals, std::int64_t rows, std::int64_t dim, float* out) {
  for (std::int64_t half = 0; half < 2; ++half) {
    for (std::int64_t row = 0; row < rows; ++row, totals += kOffsetLanes) {
      float total = 0.0F;
      for (std::int64_t lane = 0; lane < kOffsetLanes; ++lane) total += totals[lane];
      if (total == 0.0F) continue;
      float* to = out + row * dim + half * (dim / 2);
      for (std::int64_t i = 0; i < dim / 2; ++i) to[i] += total;
    }
  }
}

void WeighValues(const AttentionInput& input, const WorkGroup& group, const PartialOutput* to,
                 ItemScratch* scratch) {
  const WorkItem& first = group.item(0);
  const std::int64_t rows = first.last_row - first.first_row;
  const std::int64_t dim = input.layer->value_dim;
  const std::int64_t columns = (first.last_block - first.first_block) * input.block_size;
  const std::int64_t item_offsets = 2 * rows * kOffsetLanes;
  float* offsets = scratch->offsets.data();
  std::fill(offsets, offsets + group.count * item_offsets, 0.0F);
  for (std::int64_t i = 0; i < group.count; ++i)
    std::memset(to[i].sums, 0, static_cast<std::size_t>(rows * dim) * sizeof(float));
  for (std::int64_t b = first.first_block; b < first.last_block; ++b) {
    for (std::int64_t i = 0; i < group.count; ++i) {
      const float* weights =
          scratch->scores.data() + i * rows * columns + (b - first.first_block) * input.block_size;
      WeighBlock(input, group.item(i), input.blocks[static_cast<std::size_t>(b)], weights, columns,
                 ValuesAhead(input, group, b, i), to[i].sums, offsets + i * item_offsets, scratch);
    }
  }
  for (std::int64_t i = 0; i < group.count; ++i)
    AddOffsetTotals(offsets + i * item_offsets, rows, dim, to[i].sums);
}

// to += factor * from, [count].
void AddScaled(float factor, const float* HWY_RESTRICT from, std::int64_t count,
               float* HWY_RESTRICT to) {
  const hn::ScalableTag<float> full;
  const auto lanes = static_cast<std::int64_t>(hn::Lanes(full));
  const auto factors = hn::Set(full, factor);
  std::int64_t i = 0;
  for (; i + lanes <= count; i += lanes)
    hn::StoreU(hn::MulAdd(factors, hn::LoadU(full, from + i), hn::LoadU(full, to + i)), full,
               to + i);
  for (; i < count; ++i) to[i] += factor * from[i];
}

// The work items of one group, from queries to partial outputs, `to` of [group.count]: see WorkItem
// and PartialOutput.
void RunGroup(const AttentionInput& input, const WorkGroup& group, const PartialOutput* to) {
  thread_local ItemScratch scratch;
  const WorkItem& first = group.item(0);
  const std::int64_t rows = first.last_row - first.first_row;
  const std::int64_t all_rows = group.count * rows;
  const std::int64_t columns = (first.last_block - first.first_block) * input.block_size;
  const std::int64_t widest = std::max(input.layer->key_dim, input.block_size);
  scratch.queries.Reserve(static_cast<std::size_t>(all_rows * input.layer->key_dim));
  scratch.rotated.Reserve(static_cast<std::size_t>(all_rows * input.layer->key_dim));
  scratch.scores.Reserve(static_cast<std::size_t>(all_rows * columns));
  scratch.folded.Reserve(static_cast<std::size_t>(2 * rows * widest));
  scratch.offsets.Reserve(static_cast<std::size_t>(2 * all_rows * kOffsetLanes));
  scratch.scales.Reserve(static_cast<std::size_t>(4 * widest));

  ScoreBlocks(input, group, &scratch);
  for (std::int64_t i = 0; i < group.count; ++i) {
    float* scores = scratch.scores.data() + i * rows * columns;
    for (std::int64_t row = 0; row < rows; ++row)
      to[i].states[row] = Exponentiate(scores + row * columns, columns);
    KeepCountedWeights(input, group.item(i), scores, to[i]);
  }
  if (to->sums != nullptr) WeighValues(input, group, to, &scratch);
}

}  // namespace HWY_NAMESPACE
}  // namespace carousel
HWY_AFTER_NAMESPACE();

#if HWY_ONCE
namespace carousel {

HWY_EXPORT(RunGroup);
HWY_EXPORT(AddScaled);

namespace {

// A task's part of the scratch memory; all numbers count elements.
struct TaskPlan {
  WorkPlan work;
  std::int64_t first_item = 0;    // in Scratch::items
  std::int64_t first_group = 0;   // in the order in which threads take groups
  std::int64_t first_tile = 0;    // in the order in which tiles are merged
  std::int64_t first_split = 0;   // in the order in which mass is gathered
  std::int64_t counted_rows = 0;  // per KV head
  std::int64_t columns = 0;       // blocks * block_size
  std::int64_t sums = 0;          // where the task's begin
  std::int64_t states = 0;
  std::int64_t counted_weights = 0;
  std::int64_t counted_factors = 0;
};

}  // namespace

// Everything that outlives a work item: of all tasks, one after another.
struct AttentionScratch {
  std::vector<TaskPlan> plans;  // [tasks + 1]; the last one holds the totals
  std::vector<WorkItem> items;
  AlignedBuffer<float> sums;             // per task [items, tile_rows, value_dim]
  AlignedBuffer<SoftmaxState> states;    // per task [items, tile_rows]
  AlignedBuffer<float> counted_weights;  // per task [kv_heads, counted_rows, columns]
  AlignedBuffer<float> counted_factors;  // per task [kv_heads, counted_rows, splits]
};

PagedAttention::PagedAttention() : scratch_(std::make_unique<AttentionScratch>()) {
  ForceCpuTargetFromEnvironment();
}
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

// Loops of fewer multiplications are over before another thread has woken up.
constexpr std::int64_t kFewMultiplications = 1 << 16;

// task(i) for each i below count, on all cores if the work is worth it.
template <class Task>
void ForEach(std::int64_t count, std::int64_t multiplications, const Task& task) {
  if (multiplications >= kFewMultiplications) return ParallelFor(count, task);
  for (std::int64_t i = 0; i < count; ++i) task(i);
}

std::int64_t GroupOf(const AttentionLayerSpec& layer) { return layer.query_heads / layer.kv_heads; }

// Cuts every task into work items; each gets as many as its share of all the work asks for.
void PlanTasks(std::span<const AttentionTask> tasks, std::vector<WorkItem>* items,
               std::vector<TaskPlan>* plans) {
  std::int64_t all_work = 0;
  for (const AttentionTask& task : tasks) all_work += WorkOf(task.input);
  const std::int64_t width = ParallelWidth();
  const std::int64_t wanted = width > 1 ? 2 * width : 1;  // twice, so that uneven items even out
  items->clear();
  plans->clear();
  TaskPlan next;
  for (const AttentionTask& task : tasks) {
    const AttentionInput& input = task.input;
    CAROUSEL_CHECK_LE(input.counted_queries, input.queries);
    CAROUSEL_CHECK_GT(input.kv_heads, 0);
    CAROUSEL_CHECK_LE(input.first_kv_head + input.kv_heads, input.layer->kv_heads);
    CAROUSEL_CHECK_EQ(std::ssize(task.output.token_mass),
                      input.counted_queries > 0 ? std::ssize(input.blocks) * input.block_size : 0);
    const double share = static_cast<double>(WorkOf(input)) / static_cast<double>(all_work);
    next.work = PlanWork(
        input, static_cast<std::int64_t>(std::ceil(share * static_cast<double>(wanted))), items);
    next.counted_rows = input.counted_queries * GroupOf(*input.layer);
    next.columns = static_cast<std::int64_t>(input.blocks.size()) * input.block_size;
    plans->push_back(next);
    const std::int64_t task_items = std::ssize(*items) - next.first_item;
    next.first_item = std::ssize(*items);
    next.first_group += next.work.groups;
    next.first_tile += task_items / next.work.splits;
    next.first_split += input.counted_queries > 0 ? next.work.splits : 0;
    next.sums += task_items * next.work.tile_rows * input.layer->value_dim;
    next.states += task_items * next.work.tile_rows;
    next.counted_weights += input.kv_heads * next.counted_rows * next.columns;
    next.counted_factors += input.kv_heads * next.counted_rows * next.work.splits;
  }
  plans->push_back(next);
}

// Which task the i-th of what `first` counts belongs to.
std::size_t TaskOf(const std::vector<TaskPlan>& plans, std::int64_t TaskPlan::*first,
                   std::int64_t i) {
  std::size_t task = 0;
  while (plans[task + 1].*first <= i) ++task;
  return task;
}

// What is compiled per instruction set, chosen once per call.
struct Kernels {
  decltype(HWY_DYNAMIC_DISPATCH(RunGroup)) run_group;
  decltype(HWY_DYNAMIC_DISPATCH(AddScaled)) add_scaled;
};

// Runs a group of a task's work items; their parts go to the scratch memory.
void RunWork(const AttentionTask& task, const TaskPlan& plan, std::int64_t group,
             const Kernels& kernels, AttentionScratch* scratch) {
  const AttentionInput& input = task.input;
  const WorkGroup work = plan.work.group(group, scratch->items.data() + plan.first_item);
  thread_local std::vector<PartialOutput> to;  // kept, so that a step allocates nothing
  to.resize(static_cast<std::size_t>(work.count));
  for (std::int64_t i = 0; i < work.count; ++i) {
    const std::int64_t at = (work.first + i * work.stride) * plan.work.tile_rows;
    PartialOutput& part = to[static_cast<std::size_t>(i)];
    part.sums = task.output.out == nullptr
                    ? nullptr
                    : scratch->sums.data() + plan.sums + at * input.layer->value_dim;
    part.states = scratch->states.data() + plan.states + at;
    part.counted_weights = scratch->counted_weights.data() + plan.counted_weights +
                           work.item(i).kv_head * plan.counted_rows * plan.columns;
    part.columns = plan.columns;
  }
  kernels.run_group(input, work, to.data());
}

// Items of one tile lie side by side, one per split: merges them into the output rows, and keeps
// each split's factor for the counted rows.
void MergeTile(const AttentionTask& task, const TaskPlan& plan, std::int64_t tile,
               const Kernels& kernels, AttentionScratch* scratch) {
  const AttentionInput& input = task.input;
  const AttentionLayerSpec& layer = *input.layer;
  const std::int64_t group = GroupOf(layer);
  const std::int64_t splits = plan.work.splits;
  const std::int64_t tile_rows = plan.work.tile_rows;
  const std::int64_t first = tile * splits;
  const WorkItem& item = scratch->items[static_cast<std::size_t>(plan.first_item + first)];
  const std::int64_t part_stride = tile_rows * layer.value_dim;
  const float* tile_sums = scratch->sums.data() + plan.sums + first * part_stride;
  const SoftmaxState* tile_states = scratch->states.data() + plan.states + first * tile_rows;
  float* factors = scratch->counted_factors.data() + plan.counted_factors +
                   item.kv_head * plan.counted_rows * splits;
  for (std::int64_t row = item.first_row; row < item.last_row; ++row) {
    const std::int64_t head = (input.first_kv_head + item.kv_head) * group + row % group;
    const SoftmaxState* states = tile_states + (row - item.first_row);
    const float* sums = tile_sums + (row - item.first_row) * layer.value_dim;
    const SoftmaxState whole = MergeStates(layer, head, states, splits, tile_rows);
    float* out = nullptr;
    if (task.output.out != nullptr) {
      out = task.output.out + (row / group * layer.query_heads + head) * layer.value_dim;
      std::memset(out, 0, static_cast<std::size_t>(layer.value_dim) * sizeof(float));
    }
    const std::int64_t counted = row - (input.queries * group - plan.counted_rows);
    for (std::int64_t split = 0; split < splits; ++split) {
      const SoftmaxState& part = states[split * tile_rows];
      const float factor =
          part.sum == 0.0F ? 0.0F : std::exp(part.largest - whole.largest) / whole.sum;
      if (out != nullptr)
        kernels.add_scaled(factor, sums + split * part_stride, layer.value_dim, out);
      if (counted >= 0) factors[counted * splits + split] = factor;
    }
  }
}

// The mass of one split's tokens, over all heads and counted rows.
void GatherMass(const AttentionTask& task, const TaskPlan& plan, std::int64_t split,
                const Kernels& kernels, const AttentionScratch& scratch) {
  const AttentionInput& input = task.input;
  const std::int64_t splits = plan.work.splits;
  const BlockRange range =
      SplitRange(static_cast<std::int64_t>(input.blocks.size()), splits, split);
  const std::int64_t begin = range.first * input.block_size;
  const std::int64_t count = (range.last - range.first) * input.block_size;
  const float* factors = scratch.counted_factors.data() + plan.counted_factors;
  const float* weights = scratch.counted_weights.data() + plan.counted_weights;
  float* mass = task.output.token_mass.data() + begin;
  std::fill(mass, mass + count, 0.0F);
  for (std::int64_t row = 0; row < input.kv_heads * plan.counted_rows; ++row) {
    kernels.add_scaled(factors[row * splits + split], weights + row * plan.columns + begin, count,
                       mass);
  }
}

}  // namespace

void PagedAttention::Run(std::span<const AttentionTask> tasks) {
  if (tasks.empty()) return;
  const std::vector<TaskPlan>& plans = scratch_->plans;
  PlanTasks(tasks, &scratch_->items, &scratch_->plans);
  const TaskPlan& total = plans.back();
  scratch_->sums.Reserve(static_cast<std::size_t>(total.sums));
  scratch_->states.Reserve(static_cast<std::size_t>(total.states));
  scratch_->counted_weights.Reserve(static_cast<std::size_t>(total.counted_weights));
  scratch_->counted_factors.Reserve(static_cast<std::size_t>(total.counted_factors));
  const Kernels kernels{HWY_DYNAMIC_DISPATCH(RunGroup), HWY_DYNAMIC_DISPATCH(AddScaled)};

  ParallelFor(total.first_group, [&](std::int64_t i) {
    const std::size_t task = TaskOf(plans, &TaskPlan::first_group, i);
    RunWork(tasks[task], plans[task], i - plans[task].first_group, kernels, scratch_.get());
  });
  ForEach(total.first_tile, total.sums, [&](std::int64_t i) {
    const std::size_t task = TaskOf(plans, &TaskPlan::first_tile, i);
    MergeTile(tasks[task], plans[task], i - plans[task].first_tile, kernels, scratch_.get());
  });
  ForEach(total.first_split, total.counted_weights, [&](std::int64_t i) {
    const std::size_t task = TaskOf(plans, &TaskPlan::first_split, i);
    GatherMass(tasks[task], plans[task], i - plans[task].first_split, kernels, *scratch_);
  });
}

}  // namespace carousel
#endif
