// SPDX-License-Identifier: Apache-2.0
// One sequence's cache between steps: plan (evict, rotate, allocate, positions) before the forward
// pass, write and attend during it, importance after it.
#pragma once

#include <cstdint>
#include <optional>
#include <vector>

#include "attention/paged_attention.h"
#include "base/aligned_buffer.h"
#include "cache/block_pools.h"
#include "cache/block_table.h"
#include "carousel/model.h"
#include "engine/attention_record.h"
#include "engine/eviction_planner.h"
#include "engine/recall.h"
#include "engine/settings.h"
#include "rope/rotation_table.h"

namespace carousel {

// What a step will do, asked of the cache.
struct StepRequest {
  std::int64_t tokens = 0;       // to append; at most what LimitStep allowed
  bool is_prompt = false;        // false: decode, which stays within max_cache_size
  std::int64_t prompt_left = 0;  // prompt tokens that follow after this step
};

// One cache group's part of a step.
struct GroupPlan {
  std::vector<AttentionBlock> blocks;  // the step's own tokens included
  Position first_query_attention;
};

// Everything the forward pass needs; nobody changes it after it was made.
struct StepPlan {
  std::int64_t tokens = 0;
  std::vector<std::int64_t> position_ids;  // [tokens], written positions
  std::vector<GroupPlan> groups;
  Position first_query_logical;
  std::int64_t policy_queries = 0;   // that the policies want counted
  std::int64_t counted_queries = 0;  // that are
  std::int64_t evicted_tokens = 0;   // in the group that lost most
  std::int64_t rotated_keys = 0;  // key rotation: tokens whose keys were rewritten, over all groups
};

// A block's memory and how keys and values lie in it.
struct BlockPlace {
  std::byte* data = nullptr;
  const BlockShape* shape = nullptr;
};

class SequenceCache {
 public:
  // `layers` outlive the cache. Reserves what the settings say; throws carousel::Error
  // (kOutOfMemory).
  SequenceCache(const EngineSettings& settings, const std::vector<AttentionLayerSpec>& layers);

  const SequenceTables& tables() const { return tables_; }
  const BlockPools& pools() const { return pools_; }
  EvictionPlanner& eviction() { return eviction_; }
  std::int64_t LimitStep(std::int64_t tokens) const { return tables_.LimitStep(tokens); }

  // Evicts, rotates keys where that is the way, appends, and hands out positions. The plan stays
  // valid until the next call. Throws carousel::Error (kOutOfMemory); what was evicted by then
  // stays evicted.
  const StepPlan& Plan(const StepRequest& request);
  // One layer of the planned step: writes keys and values to the blocks, attends, notes the mass.
  // Shapes as in AttentionCallback::Attend; `tokens` are the plan's.
  void Attend(std::int64_t layer, std::int64_t tokens, const float* q, const float* k,
              const float* v, float* out);
  // Gives every block back.
  void Clear();

  // As Engine's functions of these names.
  void GatherAttention(bool gather);
  std::vector<BlockAttention> GatheredAttention(std::int64_t group) const;

  // Memory outside the pools: the open blocks.
  std::int64_t open_bytes() const;
  std::int64_t resident_tokens() const;  // the maximum over groups
  std::int64_t evicted_tokens() const;   // likewise
  // Key rotation: how far one rewriting moves keys, as |rounded - rotated| / |rotated| over all
  // keys rewritten so far (root mean squares). 0 when none was, and in f32.
  double requantisation_error() const;
  // Recalled blocks that moved back into the cache, ever, over all groups.
  std::int64_t promoted_blocks() const { return promoted_blocks_; }
  // nullptr: nothing is recalled.
  const Recall* recall() const { return recall_ ? &*recall_ : nullptr; }

 private:
  class GroupReader;

  std::int64_t Evict(const StepRequest& request);
  void EvictLayers(std::int64_t room_tokens);
  // Gives blocks back; Remove does it after they were stored for recall, which there is.
  void Release(std::int64_t group, std::span<const std::int64_t> entries);
  void Remove(std::int64_t group, std::span<const std::int64_t> entries);
  void Exchange(std::int64_t group, std::vector<std::int64_t> entries);
  void Return(std::int64_t group, const RecalledBlock& block, const std::byte* data);
  std::int64_t RotateKeys();
  void PlanGroup(std::int64_t group);
  void ExtendRotation();
  void Write(std::int64_t group, const float* k, const float* v);
  void WriteEntry(std::int64_t group, const TableEntry& entry, const float* k, const float* v);
  void RunTasks(std::int64_t first_group, std::int64_t groups);
  void Observe(std::int64_t group, std::span<const float> mass, const float* q, const float* k,
               const float* v);
  AttentionInput TaskInput(std::int64_t group, const float* q);
  const CacheGroup& group_of(std::int64_t group) const {
    return settings_.groups[static_cast<std::size_t>(group)];
  }
  const AttentionLayerSpec& LayerOf(std::int64_t group) const {
    return layers_[static_cast<std::size_t>(group_of(group).layer)];
  }
  void Seal(std::int64_t group, const TableEntry& entry);
  BlockPlace Place(std::int64_t group, const TableEntry& entry);
  RotationTable* RotationOf(std::int64_t group);

  EngineSettings settings_;
  const std::vector<AttentionLayerSpec>& layers_;
  BlockPools pools_;
  // Where keys can only be coded a whole block at a time, a group's newest block is kept here in
  // f32 until it is full; then it moves to the pool. Empty otherwise.
  std::vector<BlockShape> open_shapes_;                // [groups]
  std::vector<AlignedBuffer<std::byte>> open_blocks_;  // [groups]
  SequenceTables tables_;
  EvictionPlanner eviction_;
  std::vector<std::int64_t> released_tokens_;    // [groups], past a sliding window: no loss
  std::vector<AttentionRecord> gathered_;        // [groups]; empty: nobody asked
  std::vector<RotationTable> rotation_tables_;   // one per different LayerRope
  std::vector<std::int64_t> rotation_of_group_;  // [groups], index of a table; -1: does not rotate
  std::vector<std::int64_t> first_group_;        // [layers + 1], in settings' groups
  std::optional<Recall> recall_;
  AlignedBuffer<std::byte> returning_;  // blocks on their way back from the second tier
  std::int64_t promoted_blocks_ = 0;
  PagedAttention attention_;
  double rewritten_squares_ = 0.0;        // of all keys that key rotation rewrote
  double rewritten_error_squares_ = 0.0;  // of what rounding them again did
  StepPlan plan_;
  std::vector<AttentionTask> tasks_;  // of the layer at hand
  std::vector<float> token_mass_;     // likewise, group after group
};

}  // namespace carousel
