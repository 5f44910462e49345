// SPDX-License-Identifier: Apache-2.0
// One layer of a step as recall sees it, and the parts that it cuts a KV head's queries into.
#pragma once

#include <cstdint>
#include <span>
#include <vector>

#include "attention/paged_attention.h"
#include "cache/block_table.h"
#include "cache/cache_group.h"
#include "rope/rotation_table.h"

namespace carousel {

// One layer of one sequence's step.
struct RecallLayer {
  const SequenceTables* tables = nullptr;
  std::int64_t stage = 0;                // of the step
  std::int64_t tokens_after = 0;         // in the tables, that are later stages'
  std::int64_t first_group = 0;          // of the layer
  std::span<const CacheGroup> groups;    // the layer's
  std::span<const AttentionTask> tasks;  // [groups]: what would run without recall
  RotationTable* rotation = nullptr;     // null: nothing rotates
  bool is_prompt = false;
  bool weighs = false;  // the policies count queries: what they attend to can earn a place
};

// Queries of one KV head that share a choice. Its lists keep their memory from step to step.
struct RecallPart {
  std::int64_t lane = 0;
  std::int64_t group = 0;        // in RecallLayer::groups
  std::int64_t head = 0;         // in the group's blocks
  std::int64_t first_query = 0;  // of the step
  std::int64_t queries = 0;
  bool chooses = false;                    // anew
  std::vector<std::int32_t> ranked;        // scratch of candidates
  std::vector<std::int64_t> candidates;    // slots, in stream order
  std::vector<RecalledBlock> recalled;     // likewise, of what is brought back
  std::vector<std::int64_t> slots;         // [recalled]
  std::vector<BlockPlacement> placements;  // of all blocks
  std::vector<AttentionBlock> blocks;      // likewise
  std::vector<float> mass;                 // [blocks * block_size]
};

// A task's input with some of its queries only, the first of them after `skipped` others.
AttentionInput SomeQueries(const AttentionInput& all, std::int64_t skipped, std::int64_t queries);

}  // namespace carousel
