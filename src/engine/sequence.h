// SPDX-License-Identifier: Apache-2.0
// One sequence: the state of one history, all that must be kept to go on bit for bit. What it
// shares with others it only refers to.
//
// A step is Plan (evict, rotate keys where that is the way, allocate, hand out positions), Write
// and attend layer by layer (layer_attention.h), then Commit or Abandon. The forward pass leaves a
// trace; Commit applies it; after Abandon the step has not been, but for evictions, which were due
// before it and are not due again.
#pragma once

#include <algorithm>
#include <cstdint>
#include <optional>
#include <span>
#include <string>
#include <vector>

#include "cache/block_table.h"
#include "cache/moved_blocks.h"
#include "carousel/request.h"
#include "engine/attention_record.h"
#include "engine/block_access.h"
#include "engine/block_use.h"
#include "engine/eviction_plan.h"
#include "engine/eviction_planner.h"
#include "engine/key_rotation.h"
#include "engine/recall_state.h"
#include "engine/recall_tasks.h"
#include "engine/shared_cache.h"
#include "engine/step_plan.h"
#include "engine/step_trace.h"

namespace carousel {

// What has happened to a sequence since it was made or cleared.
struct SequenceCounts {
  std::int64_t max_resident_tokens = 0;
  std::int64_t evictions = 0;           // steps that evicted
  std::int64_t tokens_past_window = 0;  // read at positions beyond the trained window

  // Of two times, one after the other.
  void Add(const SequenceCounts& other) {
    max_resident_tokens = std::max(max_resident_tokens, other.max_resident_tokens);
    evictions += other.evictions;
    tokens_past_window += other.tokens_past_window;
  }
};

class Sequence {
 public:
  // `shared` outlives it.
  explicit Sequence(SharedCache* shared);
  // A fork: the same history in the same blocks, which are copied when either writes to them.
  // Between steps. Throws carousel::Error (kOutOfMemory) and std::bad_alloc.
  Sequence(const Sequence& from);
  Sequence& operator=(const Sequence&) = delete;
  ~Sequence();

  const SequenceTables& tables() const { return tables_; }
  EvictionPlanner& eviction() { return eviction_; }
  std::span<const TokenId> history() const { return history_; }
  // The last tokens of its history, at most so many, in order; and of those that the model itself
  // has said.
  std::span<const TokenId> LastTokens(std::int64_t most) const;
  std::vector<TokenId> LastSaid(std::int64_t most) const;
  // The last token of each answer so far.
  std::vector<TokenId> LastOfAnswers() const;
  const StepPlan& plan() const { return plan_; }
  // Its owner counts.
  SequenceCounts& counts() { return counts_; }
  const SequenceCounts& counts() const { return counts_; }

  // The plan of a step; it stays until the next. Of an answer's tokens it may take fewer than
  // asked, so that each could be a step of its own. Throws carousel::Error (kOutOfMemory) and
  // std::bad_alloc; then there is no step. No other step is at hand.
  const StepPlan& Plan(const StepRequest& request);

  // --- One layer of the planned step; rows are those of this sequence alone.

  // Codes keys and values [tokens, Hkv * dim] of the layer into the blocks.
  void Write(std::int64_t layer, const float* k, const float* v);
  // The tasks of a stage of the layer, one per group, appended to `tasks`; their mass goes to the
  // trace. q and out are the step's.
  void AddTasks(std::int64_t layer, std::int64_t stage, const float* q, float* out,
                std::vector<AttentionTask>* tasks);
  // The stage's layer for recall, whose tasks AddTasks has made. Stages that recall come in order.
  RecallLayer LayerForRecall(std::int64_t layer, std::int64_t stage,
                             std::span<const AttentionTask> tasks);
  // nullptr: nothing is recalled.
  RecallTasks* recall_tasks() { return recall_tasks_ ? &*recall_tasks_ : nullptr; }
  const RecallTasks* recall_tasks() const { return recall_tasks_ ? &*recall_tasks_ : nullptr; }
  RecallState* recall() { return recall_ ? &*recall_ : nullptr; }
  const RecallState* recall() const { return recall_ ? &*recall_ : nullptr; }
  // Keeps what policies want to see of the layer after the forward pass.
  void Trace(std::int64_t layer, const float* q, const float* k, const float* v);

  // Applies the trace of the step, in which the model has asked for every layer (CHECKed), and
  // takes its `tokens` into the history; the first `said` of them were sampled. Of an answer they
  // may be the first of the step's alone: what follows has not been. Throws std::bad_alloc alone:
  // the sequence must then be cleared.
  void Commit(std::span<const TokenId> tokens, std::int64_t said);
  // The step has not been. Also without a step at hand.
  void Abandon() noexcept;

  // Gives every block back and forgets everything.
  void Clear();

  // As Engine's functions of these names.
  void GatherAttention(bool gather);
  bool gathers_attention() const { return !gathered_.empty(); }
  std::vector<BlockAttention> GatheredAttention(std::int64_t group) const;

  std::int64_t cache_bytes() const;  // of its blocks
  // Of all that it holds and of what it shares, about: blocks, what was evicted of it, its history,
  // what its policies remember.
  std::int64_t bytes() const;
  // Takes what its blocks hold out of the pools, to `to`: a file in `directory`, or memory where
  // that is empty or does not take it. Between steps, while it has blocks. Throws std::bad_alloc;
  // nothing has changed then. Until it is put back the sequence can only be cleared.
  void MoveOut(const std::string& directory, MovedBlocks* to);
  // Puts it back. Throws carousel::Error (kOutOfMemory) where the pools have no room, or kIo where
  // a disk does not give it; nothing has changed then.
  void MoveIn(const MovedBlocks& from);
  // Memory outside the pools: the open blocks.
  std::int64_t open_bytes() const { return blocks_.open_bytes(); }
  std::int64_t resident_tokens() const;   // the maximum over groups
  std::int64_t evicted_tokens() const;    // ever, likewise; what came back counts
  std::int64_t forgotten_tokens() const;  // now, likewise
  double requantisation_error() const { return key_rotation_.requantisation_error(); }
  // Recalled blocks that moved back into the cache, ever, over all groups.
  std::int64_t promoted_blocks() const { return promoted_blocks_; }

  const SharedCache* shared() const { return shared_; }
  // Between steps. CHECKs that its tables and its second tier are whole, and that it holds nothing
  // of the pools where it is moved out; adds what it holds.
  void CheckIntegrity(bool is_moved_out, Holdings* holdings) const;

 private:
  // Now in the group's table no more; what has only left a sliding window is no loss.
  std::int64_t Forgotten(std::int64_t group) const;
  void Evict(const StepRequest& request);
  std::vector<std::int64_t> BlocksPastWindow(std::int64_t group, std::int64_t tokens) const;
  void ReleasePastWindows();
  void EvictLayers(std::int64_t room_tokens);
  void MakeRoom(std::span<const EvictionPlan> plans);
  void Apply(std::int64_t group, const EvictionPlan& plan);
  void Release(std::int64_t group, std::span<const std::int64_t> entries);
  void Store(std::int64_t group, std::span<const std::int64_t> entries);
  void CountEvicted(std::int64_t group, std::span<const std::int64_t> entries);
  void Return(std::int64_t group, const RecalledBlock& block, const std::byte* data);
  void ExtendRotation();
  void FillPlan(const StepRequest& request);
  std::int64_t LimitTogether(std::int64_t tokens) const;
  void PlanGroup(std::int64_t group, StagePlan* stage);
  TableEntry LastEntryOf(std::int64_t group, const StagePlan& stage) const;
  void Observe(std::int64_t group, std::int64_t stage);
  void ObserveStages(std::int64_t group, std::int64_t stages);
  void DropFrom(std::int64_t stay);
  void AddToHistory(std::span<const TokenId> tokens, std::int64_t said);

  SharedCache* shared_;
  SequenceTables tables_;
  BlockAccess blocks_;
  std::vector<GroupReader> readers_;  // [groups]
  EvictionPlanner eviction_;
  std::optional<RecallState> recall_;
  std::optional<RecallTasks> recall_tasks_;
  KeyRotation key_rotation_;
  std::vector<TokenId> history_;               // all tokens read, from the first
  std::vector<TokenSpan> said_;                // parts of the history that were sampled, in order
  std::vector<std::int64_t> released_tokens_;  // [groups], past a sliding window: no loss
  std::vector<std::int64_t> promoted_tokens_;  // [groups], ever
  std::int64_t promoted_blocks_ = 0;
  SequenceCounts counts_;
  std::vector<BlockUse> use_;              // [groups]
  std::vector<AttentionRecord> gathered_;  // [groups]; empty: nobody asked
  AlignedBuffer<std::byte> returning_;     // blocks on their way back from the second tier

  // Of the step at hand.
  StepPlan plan_;
  StepTrace trace_;
  std::optional<SequenceTables::Mark> begin_;  // none: no step is at hand
  std::vector<std::int64_t> forgotten_;        // [groups], at the last commit
};

}  // namespace carousel
