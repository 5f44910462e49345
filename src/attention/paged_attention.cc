// SPDX-License-Identifier: Apache-2.0
#include "attention/paged_attention.h"

#include <algorithm>
#include <atomic>
#include <cstring>
#include <optional>
#include <vector>

#include "attention/attention_scratch.h"
#include "attention/merge_splits.h"
#include "base/aligned_buffer.h"
#include "base/check.h"
#include "base/cpu_target.h"
#include "base/parallel.h"
#include "base/shares.h"

#undef HWY_TARGET_INCLUDE
#define HWY_TARGET_INCLUDE "attention/paged_attention.cc"
#include <hwy/foreach_target.h>
// Highway's own headers come after foreach_target.
#include <hwy/highway.h>

#include "attention/block_products-inl.h"
#include "attention/planes_ahead-inl.h"
#include "attention/query_factors-inl.h"
#include "attention/score_rows-inl.h"
#include "attention/work.h"
#include "rope/rotate-inl.h"

HWY_BEFORE_NAMESPACE();
namespace carousel {
namespace HWY_NAMESPACE {

// How far apart the rows of an item's scores lie. A cache line more than they are long: rows that
// are a power of two apart would all want the same lines of the cache.
std::int64_t ScoreStride(const AttentionInput& input, const WorkItem& item) {
  return (item.last_block - item.first_block) * input.block_size + 16;
}

// A tile's queries, [rows, key_dim], scaled and as the model rotated them.
void LoadQueries(const AttentionInput& input, const WorkItem& item, float* to) {
  const AttentionLayerSpec& layer = *input.layer;
  const std::int64_t group = GroupOf(layer);
  for (std::int64_t row = item.first_row; row < item.last_row; ++row, to += layer.key_dim) {
    const std::int64_t query = row / group;
    const std::int64_t head = (input.first_kv_head + item.kv_head) * group + row % group;
    const float* from = input.q + (query * layer.query_heads + head) * layer.key_dim;
    for (std::int64_t i = 0; i < layer.key_dim; ++i) to[i] = from[i] * layer.scale;
  }
}

// For few rows the queries are turned to each block's place.
void ScoreForFewRows(const AttentionInput& input, const WorkGroup& group, ItemScratch* scratch) {
  const WorkItem& first = group.item(0);
  const std::int64_t rows = first.last_row - first.first_row;
  const std::int64_t all_rows = group.count * rows;
  const std::int64_t dim = input.layer->key_dim;
  const std::int64_t stride = ScoreStride(input, first);
  const PlanesAhead ahead(input, group);
  std::int64_t rotated_by = 0;             // of `rotated`; 0: of none
  std::optional<std::int64_t> rounded_at;  // of `factors`
  for (std::int64_t b = first.first_block; b < first.last_block; ++b) {
    const AttentionBlock& block = input.blocks[static_cast<std::size_t>(b)];
    const bool rotate = input.rotation != nullptr && block.shift_blocks != 0;
    const std::int64_t shift = rotate ? block.shift_blocks : 0;
    const float* queries = scratch->queries.data();
    if (MultipliesCodes(block.shape->key_type, rows, dim, input.block_size)) {
      if (!rounded_at)
        ScaleToUnits(queries, all_rows, dim, scratch->scaled.data(), scratch->units.data());
      if (rounded_at != shift)
        RoundQueries(input.rotation, shift, scratch->scaled.data(), all_rows, dim,
                     scratch->rotated.data(), scratch->factors.data());
      rounded_at = shift;
      rotated_by = 0;
    } else if (rotate) {
      if (rotated_by != shift)
        RotateRowsInl(input.rotation->rope(), input.rotation->row(shift), dim, all_rows, queries,
                      scratch->rotated.data());
      rotated_by = shift;
      queries = scratch->rotated.data();
    }
    const bool needs_mask = NeedsMask(input, first, block);  // as it does for the other heads
    for (std::int64_t i = 0; i < group.count; ++i) {
      const FactorRows rounded{scratch->factors.data() + i * rows * EvenCount(dim), EvenCount(dim),
                               scratch->units.data() + i * rows};
      float* scores =
          scratch->scores.data() + i * rows * stride + (b - first.first_block) * input.block_size;
      ScoreBlock(input, group.item(i), block, {queries + i * rows * dim, rounded}, stride,
                 ahead.BesideKeys(b, i), scores, scratch);
      if (needs_mask) MaskScores(input, group.item(i), block, stride, scores);
    }
  }
}

// Blocks whose planes are multiplied at once where rows are many: a tile's numbers are fetched, and
// its sums stored, less often.
inline constexpr std::int64_t kBlocksAtOnce = 2;

// Blocks [begin, end) of a KV head as rows of floats, side by side, and their tokens' scales.
// Fewer keys than queries are turned, by the inverse angle: q R k is the same as (R' q) k.
ElementRows<float> WidenKeysOfBlocks(const AttentionInput& input, const WorkGroup& group,
                                     const PlanesAhead& ahead, std::int64_t at, std::int64_t begin,
                                     std::int64_t end, const float** token_scales,
                                     ItemScratch* scratch) {
  const std::int64_t stride = (end - begin) * input.block_size;
  *token_scales = nullptr;
  for (std::int64_t b = begin; b < end; ++b) {
    const AttentionBlock& block = input.blocks[static_cast<std::size_t>(b)];
    const BlockShape& shape = *block.shape;
    const std::byte* plane =
        block.data + shape.key_offset(block.first_head + group.item(at).kv_head);
    float* to = scratch->plane.data() + (b - begin) * input.block_size;
    WidenKeys(input, shape, plane, ahead.BesideKeys(b, at), stride, scratch, to);
    if (input.rotation != nullptr && block.shift_blocks != 0) {
      RotateColumnsInl(input.rotation->rope(), input.rotation->row(-block.shift_blocks),
                       input.block_size, stride, to);
    }
    if (shape.key_type != KvType::kInt8) continue;
    float* scales = scratch->token_scales.data();
    if (*token_scales == nullptr) std::fill_n(scales, stride, 1.0F);
    std::copy_n(ScalesOfInt8(plane, input.block_size, shape.key_dim), input.block_size,
                scales + (b - begin) * input.block_size);
    *token_scales = scales;
  }
  return {scratch->plane.data(), stride, stride, {}};
}

void ScoreForManyRows(const AttentionInput& input, const WorkGroup& group, std::int64_t at,
                      ItemScratch* scratch) {
  const WorkItem& item = group.item(at);
  const std::int64_t rows = item.last_row - item.first_row;
  const std::int64_t dim = input.layer->key_dim;
  const std::int64_t stride = ScoreStride(input, item);
  const float* queries = scratch->queries.data() + at * rows * dim;
  float* scores = scratch->scores.data() + at * rows * stride;
  const PlanesAhead ahead(input, group);
  for (std::int64_t b = item.first_block; b < item.last_block; b += kBlocksAtOnce) {
    const std::int64_t end = std::min(item.last_block, b + kBlocksAtOnce);
    const float* token_scales = nullptr;
    const ElementRows<float> keys =
        WidenKeysOfBlocks(input, group, ahead, at, b, end, &token_scales, scratch);
    float* to = scores + (b - item.first_block) * input.block_size;
    RowProduct(LeftRows{queries, queries, dim}, rows, dim, keys,
               ResultRows{to, stride, false, token_scales});
    for (std::int64_t i = b; i < end; ++i) {
      const AttentionBlock& block = input.blocks[static_cast<std::size_t>(i)];
      if (NeedsMask(input, item, block))
        MaskScores(input, item, block, stride, to + (i - b) * input.block_size);
    }
  }
}

void ScoreBlocks(const AttentionInput& input, const WorkGroup& group, ItemScratch* scratch) {
  const std::int64_t rows = group.item(0).last_row - group.item(0).first_row;
  for (std::int64_t i = 0; i < group.count; ++i)
    LoadQueries(input, group.item(i), scratch->queries.data() + i * rows * input.layer->key_dim);
  if (rows < kManyRows) return ScoreForFewRows(input, group, scratch);
  for (std::int64_t i = 0; i < group.count; ++i) ScoreForManyRows(input, group, i, scratch);
}

// sums[rows, value_dim] += weights . the values of all the item's blocks, for many rows.
void WeighForManyRows(const AttentionInput& input, const WorkGroup& group, std::int64_t at,
                      float* sums, ItemScratch* scratch) {
  const WorkItem& item = group.item(at);
  const std::int64_t rows = item.last_row - item.first_row;
  const std::int64_t dim = input.layer->value_dim;
  const std::int64_t stride = ScoreStride(input, item);
  const float* weights = scratch->scores.data() + at * rows * stride;
  const PlanesAhead ahead(input, group);
  for (std::int64_t b = item.first_block; b < item.last_block; b += kBlocksAtOnce) {
    const std::int64_t end = std::min(item.last_block, b + kBlocksAtOnce);
    std::int64_t tokens = 0;  // all blocks but the last one are full, so weights lie side by side
    for (std::int64_t i = b; i < end; ++i) {
      const AttentionBlock& block = input.blocks[static_cast<std::size_t>(i)];
      WidenValues(input, item, block, ahead.BesideValues(i, at), scratch,
                  scratch->plane.data() + tokens * dim);
      tokens += block.tokens;
    }
    const float* first = weights + (b - item.first_block) * input.block_size;
    RowProduct(LeftRows{first, first, stride}, rows, tokens,
               ElementRows{scratch->plane.data(), dim, dim}, ResultRows{sums, dim, true, nullptr});
  }
}

void WeighValues(const AttentionInput& input, const WorkGroup& group, const PartialOutput* to,
                 ItemScratch* scratch) {
  const WorkItem& first = group.item(0);
  const std::int64_t rows = first.last_row - first.first_row;
  const std::int64_t dim = input.layer->value_dim;
  const std::int64_t stride = ScoreStride(input, first);
  const std::int64_t item_offsets = 2 * rows * kOffsetLanes;
  float* offsets = scratch->offsets.data();
  std::fill(offsets, offsets + group.count * item_offsets, 0.0F);
  for (std::int64_t i = 0; i < group.count; ++i)
    std::memset(to[i].sums, 0, static_cast<std::size_t>(rows * dim) * sizeof(float));
  if (rows >= kManyRows) {
    for (std::int64_t i = 0; i < group.count; ++i)
      WeighForManyRows(input, group, i, to[i].sums, scratch);
    return;
  }
  const PlanesAhead ahead(input, group);
  for (std::int64_t b = first.first_block; b < first.last_block; ++b) {
    for (std::int64_t i = 0; i < group.count; ++i) {
      const float* weights =
          scratch->scores.data() + i * rows * stride + (b - first.first_block) * input.block_size;
      WeighBlock(input, group.item(i), input.blocks[static_cast<std::size_t>(b)], weights, stride,
                 ahead.BesideValues(b, i), to[i].sums, offsets + i * item_offsets, scratch);
    }
  }
  for (std::int64_t i = 0; i < group.count; ++i)
    AddOffsetTotals(offsets + i * item_offsets, rows, dim, to[i].sums);
}

// The work items of one group, from queries to partial outputs, `to` of [group.count]: see WorkItem
// and PartialOutput.
void RunGroup(const AttentionInput& input, const WorkGroup& group, const PartialOutput* to) {
  thread_local ItemScratch scratch;
  const WorkItem& first = group.item(0);
  const std::int64_t rows = first.last_row - first.first_row;
  const std::int64_t all_rows = group.count * rows;
  const std::int64_t columns = (first.last_block - first.first_block) * input.block_size;
  const std::int64_t stride = ScoreStride(input, first);
  const std::int64_t widest = std::max(input.layer->key_dim, input.block_size);
  scratch.queries.Reserve(static_cast<std::size_t>(all_rows * input.layer->key_dim));
  scratch.rotated.Reserve(static_cast<std::size_t>(all_rows * input.layer->key_dim));
  scratch.scores.Reserve(static_cast<std::size_t>(all_rows * stride));
  scratch.folded.Reserve(static_cast<std::size_t>(2 * rows * widest));
  scratch.offsets.Reserve(static_cast<std::size_t>(2 * all_rows * kOffsetLanes));
  scratch.scales.Reserve(static_cast<std::size_t>(4 * widest));
  scratch.factors.Reserve(static_cast<std::size_t>(all_rows * EvenCount(widest)));
  scratch.units.Reserve(static_cast<std::size_t>(all_rows));
  scratch.scaled.Reserve(static_cast<std::size_t>(all_rows * input.layer->key_dim));
  if (rows >= kManyRows) {
    const std::int64_t plane_columns = kBlocksAtOnce * input.block_size;
    scratch.plane.Reserve(static_cast<std::size_t>(
        plane_columns * std::max(input.layer->key_dim, input.layer->value_dim)));
    scratch.token_scales.Reserve(static_cast<std::size_t>(plane_columns));
  }

  ScoreBlocks(input, group, &scratch);
  for (std::int64_t i = 0; i < group.count; ++i) {
    float* scores = scratch.scores.data() + i * rows * stride;
    for (std::int64_t row = 0; row < rows; ++row)
      to[i].states[row] = Exponentiate(scores + row * stride, columns);
    KeepCountedWeights(input, group.item(i), scores, stride, to[i]);
  }
  if (to->sums != nullptr) WeighValues(input, group, to, &scratch);
}

}  // namespace HWY_NAMESPACE
}  // namespace carousel
HWY_AFTER_NAMESPACE();

#if HWY_ONCE
namespace carousel {

HWY_EXPORT(RunGroup);

PagedAttention::PagedAttention() : scratch_(std::make_unique<AttentionScratch>()) {
  ForceCpuTargetFromEnvironment();
}
PagedAttention::~PagedAttention() = default;
PagedAttention::PagedAttention(PagedAttention&&) noexcept = default;
PagedAttention& PagedAttention::operator=(PagedAttention&&) noexcept = default;

namespace {

// Whether the mass of a split comes out of one group, the split's own.
bool GathersOwnMass(const TaskPlan& plan) {
  return plan.counted_rows > 0 && plan.work.groups == plan.work.splits;
}

// Cuts every task into work items, each by itself.
void PlanTasks(std::span<const AttentionTask> tasks, std::vector<WorkItem>* items,
               std::vector<TaskPlan>* plans) {
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
    next.work = PlanWork(input, items);
    next.counted_rows = input.counted_queries * GroupOf(*input.layer);
    next.columns = static_cast<std::int64_t>(input.blocks.size()) * input.block_size;
    plans->push_back(next);
    const std::int64_t task_items = std::ssize(*items) - next.first_item;
    next.first_item = std::ssize(*items);
    next.first_group += next.work.groups;
    if (task.output.out != nullptr) next.first_tile += task_items / next.work.splits;
    if (next.counted_rows > 0 && !GathersOwnMass(next)) next.first_split += next.work.splits;
    next.sums += task_items * next.work.tile_rows * input.layer->value_dim;
    next.states += task_items * next.work.tile_rows;
    next.counted_weights += input.kv_heads * next.counted_rows * next.columns;
  }
  plans->push_back(next);
}

// Which task the i-th of what `first` counts belongs to.
std::size_t TaskOf(const std::vector<TaskPlan>& plans, std::int64_t TaskPlan::*first,
                   std::int64_t i) {
  const auto after = std::upper_bound(
      plans.begin(), plans.end(), i,
      [first](std::int64_t value, const TaskPlan& plan) { return value < plan.*first; });
  return static_cast<std::size_t>(after - plans.begin()) - 1;
}

// Runs a group of a task's work items; their parts go to the scratch memory.
void RunWork(const AttentionTask& task, const TaskPlan& plan, std::int64_t group,
             decltype(&HWY_DYNAMIC_DISPATCH(RunGroup)) run_group, AttentionScratch* scratch) {
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
  run_group(input, work, to.data());
}

// Counts a group as done when it goes, be it by an exception: others wait for all groups.
class CountWhenDone {
 public:
  explicit CountWhenDone(std::atomic<std::int64_t>* count) : count_(count) {}
  CountWhenDone(const CountWhenDone&) = delete;
  CountWhenDone& operator=(const CountWhenDone&) = delete;
  ~CountWhenDone() { count_->fetch_add(1, std::memory_order_release); }

 private:
  std::atomic<std::int64_t>* count_;
};

// A thread's share of a call: groups, then the outputs of tiles and the mass of splits.
void RunShare(std::span<const AttentionTask> tasks, std::int64_t worker,
              decltype(&HWY_DYNAMIC_DISPATCH(RunGroup)) run_group, AttentionScratch* scratch) {
  const std::vector<TaskPlan>& plans = scratch->plans;
  const std::int64_t groups = plans.back().first_group;
  thread_local std::vector<std::int64_t> own;  // groups; kept, so that a step allocates nothing
  own.clear();
  own.reserve(static_cast<std::size_t>(groups));
  const auto take = [&](SharedList list) { return scratch->shares.Take(list, worker); };
  for (std::int64_t i = take(kGroups); i >= 0; i = take(kGroups)) {
    const CountWhenDone done(&scratch->groups_done);
    const std::size_t task = TaskOf(plans, &TaskPlan::first_group, i);
    RunWork(tasks[task], plans[task], i - plans[task].first_group, run_group, scratch);
    if (GathersOwnMass(plans[task])) own.push_back(i);
  }
  AwaitCount(scratch->groups_done, groups);
  for (std::int64_t i = take(kTiles); i >= 0; i = take(kTiles)) {
    const std::size_t task = TaskOf(plans, &TaskPlan::first_tile, i);
    MergeTile(tasks[task], plans[task], i - plans[task].first_tile, *scratch);
  }
  for (const std::int64_t i : own) {
    const std::size_t task = TaskOf(plans, &TaskPlan::first_group, i);
    GatherMass(tasks[task], plans[task], i - plans[task].first_group, *scratch);
  }
  for (std::int64_t i = take(kSplits); i >= 0; i = take(kSplits)) {
    const std::size_t task = TaskOf(plans, &TaskPlan::first_split, i);
    GatherMass(tasks[task], plans[task], i - plans[task].first_split, *scratch);
  }
}

}  // namespace

void PagedAttention::Run(std::span<const AttentionTask> tasks) {
  if (tasks.empty()) return;
  PlanTasks(tasks, &scratch_->items, &scratch_->plans);
  const TaskPlan& total = scratch_->plans.back();
  scratch_->sums.Reserve(static_cast<std::size_t>(total.sums));
  scratch_->states.Reserve(static_cast<std::size_t>(total.states));
  scratch_->counted_weights.Reserve(static_cast<std::size_t>(total.counted_weights));
  // One parallel loop for all of it: beginning another costs as much as a short context does, and
  // what a thread has left behind is in its core's cache.
  const std::int64_t workers = std::min(ParallelWidth(), total.first_group);
  scratch_->shares.Reset({total.first_group, total.first_tile, total.first_split}, workers);
  scratch_->groups_done = 0;
  const auto run_group = HWY_DYNAMIC_DISPATCH(RunGroup);
  ParallelFor(workers,
              [&](std::int64_t worker) { RunShare(tasks, worker, run_group, scratch_.get()); });
}

}  // namespace carousel
#endif
