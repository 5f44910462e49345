// SPDX-License-Identifier: Apache-2.0
#include "attention/merge_splits.h"

#include <algorithm>
#include <cmath>

#include "attention/work.h"

#undef HWY_TARGET_INCLUDE
#define HWY_TARGET_INCLUDE "attention/merge_splits.cc"
#include <hwy/foreach_target.h>
// Highway's own header comes after foreach_target.
#include <hwy/highway.h>

HWY_BEFORE_NAMESPACE();
namespace carousel {
namespace HWY_NAMESPACE {
namespace hn = hwy::HWY_NAMESPACE;

// to = factor * from, [count].
void Scale(float factor, const float* HWY_RESTRICT from, std::int64_t count,
           float* HWY_RESTRICT to) {
  const hn::ScalableTag<float> full;
  const auto lanes = static_cast<std::int64_t>(hn::Lanes(full));
  const auto factors = hn::Set(full, factor);
  std::int64_t i = 0;
  for (; i + lanes <= count; i += lanes)
    hn::StoreU(hn::Mul(factors, hn::LoadU(full, from + i)), full, to + i);
  for (; i < count; ++i) to[i] = factor * from[i];
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

}  // namespace HWY_NAMESPACE
}  // namespace carousel
HWY_AFTER_NAMESPACE();

#if HWY_ONCE
namespace carousel {

HWY_EXPORT(Scale);
HWY_EXPORT(AddScaled);

namespace {

// The weight that each split's part gets in the whole softmax of one row (Milakov and Gimelshein
// 2018: online softmax; the splits' states merge like its steps). A head's sink joins the sum and
// has no value.
SoftmaxState MergeStates(const AttentionLayerSpec& layer, std::int64_t head,
                         const SoftmaxState* states, std::int64_t splits, std::int64_t stride) {
  SoftmaxState whole;
  const bool has_sink = !layer.sinks.empty();
  if (has_sink) whole.largest = layer.sinks[static_cast<std::size_t>(head)];
  const float sink = whole.largest;
  for (std::int64_t split = 0; split < splits; ++split)
    whole.largest = std::max(whole.largest, states[split * stride].largest);
  if (has_sink) whole.sum = std::exp(sink - whole.largest);
  for (std::int64_t split = 0; split < splits; ++split) {
    const SoftmaxState& part = states[split * stride];
    if (part.sum != 0.0F) whole.sum += part.sum * std::exp(part.largest - whole.largest);
  }
  return whole;
}

// What a split's weights of a row are multiplied by.
float FactorOf(const SoftmaxState& part, const SoftmaxState& whole) {
  return part.sum == 0.0F ? 0.0F : std::exp(part.largest - whole.largest) / whole.sum;
}

// The states of a row, one for each split, plan.work.tile_rows apart. `kv_head` is the task's.
const SoftmaxState* StatesOf(const TaskPlan& plan, const AttentionScratch& scratch,
                             std::int64_t kv_head, std::int64_t row) {
  const std::int64_t tile_rows = plan.work.tile_rows;
  return scratch.states.data() + plan.states + plan.work.item_of(kv_head, row) * tile_rows +
         row % tile_rows;
}

}  // namespace

void MergeTile(const AttentionTask& task, const TaskPlan& plan, std::int64_t tile,
               const AttentionScratch& scratch) {
  const AttentionInput& input = task.input;
  const AttentionLayerSpec& layer = *input.layer;
  const std::int64_t group = GroupOf(layer);
  const std::int64_t splits = plan.work.splits;
  const std::int64_t tile_rows = plan.work.tile_rows;
  const std::int64_t first = tile * splits;
  const WorkItem& item = scratch.items[static_cast<std::size_t>(plan.first_item + first)];
  const std::int64_t part_stride = tile_rows * layer.value_dim;
  const float* tile_sums = scratch.sums.data() + plan.sums + first * part_stride;
  const auto scale = HWY_DYNAMIC_DISPATCH(Scale);
  const auto add_scaled = HWY_DYNAMIC_DISPATCH(AddScaled);
  for (std::int64_t row = item.first_row; row < item.last_row; ++row) {
    const std::int64_t head = (input.first_kv_head + item.kv_head) * group + row % group;
    const SoftmaxState* states = StatesOf(plan, scratch, item.kv_head, row);
    const float* sums = tile_sums + (row - item.first_row) * layer.value_dim;
    const SoftmaxState whole = MergeStates(layer, head, states, splits, tile_rows);
    float* out = task.output.out + (row / group * layer.query_heads + head) * layer.value_dim;
    scale(FactorOf(states[0], whole), sums, layer.value_dim, out);
    for (std::int64_t split = 1; split < splits; ++split) {
      add_scaled(FactorOf(states[split * tile_rows], whole), sums + split * part_stride,
                 layer.value_dim, out);
    }
  }
}

void GatherMass(const AttentionTask& task, const TaskPlan& plan, std::int64_t split,
                const AttentionScratch& scratch) {
  const AttentionInput& input = task.input;
  const std::int64_t splits = plan.work.splits;
  const std::int64_t tile_rows = plan.work.tile_rows;
  const std::int64_t group = GroupOf(*input.layer);
  const BlockRange range =
      SplitRange(static_cast<std::int64_t>(input.blocks.size()), splits, split);
  const std::int64_t begin = range.first * input.block_size;
  const std::int64_t count = (range.last - range.first) * input.block_size;
  const std::int64_t rows = input.queries * group;
  const auto add_scaled = HWY_DYNAMIC_DISPATCH(AddScaled);
  const float* weights = scratch.counted_weights.data() + plan.counted_weights + begin;
  float* mass = task.output.token_mass.data() + begin;
  std::fill(mass, mass + count, 0.0F);
  for (std::int64_t kv_head = 0; kv_head < input.kv_heads; ++kv_head) {
    for (std::int64_t row = rows - plan.counted_rows; row < rows; ++row, weights += plan.columns) {
      const std::int64_t head = (input.first_kv_head + kv_head) * group + row % group;
      const SoftmaxState* states = StatesOf(plan, scratch, kv_head, row);
      const SoftmaxState whole = MergeStates(*input.layer, head, states, splits, tile_rows);
      add_scaled(FactorOf(states[split * tile_rows], whole), weights, count, mass);
    }
  }
}

}  // namespace carousel
#endif
