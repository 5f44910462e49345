// SPDX-License-Identifier: Apache-2.0
// Memory of one call of attention: what its threads leave for one another.
#pragma once

#include <atomic>
#include <cstddef>
#include <cstdint>
#include <vector>

#include "attention/paged_attention.h"
#include "attention/work.h"
#include "base/aligned_buffer.h"
#include "base/shares.h"

namespace carousel {

// A task's part of the scratch memory; all numbers count elements.
struct TaskPlan {
  WorkPlan work;
  std::int64_t first_item = 0;    // in AttentionScratch::items
  std::int64_t first_group = 0;   // in the order in which threads take groups
  std::int64_t first_tile = 0;    // in the order in which tiles are merged
  std::int64_t first_split = 0;   // in the order in which mass is gathered
  std::int64_t counted_rows = 0;  // per KV head
  std::int64_t columns = 0;       // blocks * block_size
  std::int64_t sums = 0;          // where the task's begin
  std::int64_t states = 0;
  std::int64_t counted_weights = 0;
};

// What the threads of a call share out among themselves.
enum SharedList : std::size_t { kGroups, kTiles, kSplits, kLists };

// Everything that outlives a work item: of all tasks, one after another.
struct AttentionScratch {
  std::vector<TaskPlan> plans;  // [tasks + 1]; the last one holds the totals
  std::vector<WorkItem> items;
  AlignedBuffer<float> sums;             // per task [items, tile_rows, value_dim]
  AlignedBuffer<SoftmaxState> states;    // per task [items, tile_rows]
  AlignedBuffer<float> counted_weights;  // per task [kv_heads, counted_rows, columns]
  Shares<kLists> shares;                 // what each thread is to do next
  alignas(kAlignment) std::atomic<std::int64_t> groups_done = 0;
};

}  // namespace carousel
