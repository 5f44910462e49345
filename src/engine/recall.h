// SPDX-License-Identifier: Apache-2.0
// Recall for one sequence: evicted blocks go to the second tier, and in each step every KV head
// attends to the few of them that its queries would give most attention to, beside what is
// resident.
//
// A choice is made for each few tokens of a prompt, by the last of them, and for each token or few
// tokens of an answer (recall_cadence.h); so the queries of one step attend to different blocks.
// Coarse first: sketches name a few times as many blocks as are wanted. Then exactly: the
// attention that these and the resident blocks would get together, each query head's own softmax
// over both, summed over the KV head's query heads and the queries. A candidate is weighed at the
// farthest place that it could take, before all that is resident, so that angles stay inside the
// trained window. What is recalled is read where it lies and stands in stream order.
#pragma once

#include <algorithm>
#include <cstdint>
#include <span>
#include <vector>

#include "attention/paged_attention.h"
#include "cache/block_table.h"
#include "cache/cache_group.h"
#include "cache/recall_store.h"
#include "carousel/model.h"
#include "engine/promotion.h"
#include "engine/recall_cadence.h"
#include "engine/settings.h"
#include "rope/rotation_table.h"

namespace carousel {

class Recall {
 public:
  // So few stored blocks are all judged by their keys. Of more, sketches name some: so many for
  // tokens of a prompt, and for a token of an answer.
  static constexpr std::int64_t kFewStored = 128;
  static constexpr std::int64_t kFewestCandidates = 128;
  static constexpr std::int64_t kFewestOfAnswers = 64;

  // `layers` outlive it. Throws as RecallStore.
  Recall(const EngineSettings& settings, const std::vector<AttentionLayerSpec>& layers);

  // Takes a copy of a full block that the group's table is about to lose, or drops it where there
  // is no room. Does not throw.
  void Store(const CacheGroup& group, const TableEntry& entry, const std::byte* data,
             const BlockShape& shape, RotationTable* rotation) noexcept;
  // A recalled block that has earned a resident block's place.
  struct Promotion {
    std::int64_t leaves = 0;  // entry of the group's table
    RecalledBlock returns;
  };
  // When a group evicts: who of `candidates`, entries that may go and do not, goes as well, and for
  // which block. Attention is weighed from here anew. `group_index` is the group's number.
  std::vector<Promotion> Promote(std::int64_t group_index, const CacheGroup& group,
                                 std::span<const TableEntry> entries,
                                 std::span<const std::int64_t> candidates);
  // Writes a stored block as one of the group's shape, at `to`.
  void Read(const CacheGroup& group, Position logical, const BlockShape& shape, std::byte* to);
  // Takes a block out of the second tier, if it is there.
  void Remove(const CacheGroup& group, Position logical);
  // Before a step's layers.
  void BeginStep(bool is_prompt);
  void Clear();

  // One layer of a step.
  struct LayerStep {
    const SequenceTables* tables = nullptr;
    std::int64_t first_group = 0;          // of the layer
    std::span<const CacheGroup> groups;    // the layer's
    std::span<const AttentionTask> tasks;  // [groups]: what would run without recall
    RotationTable* rotation = nullptr;     // null: nothing rotates
    PagedAttention* attention = nullptr;
    bool weighs = false;  // the policies count queries: what they attend to can earn a place
  };
  // The layer's tasks with what is recalled, one for each KV head and queries that share a choice;
  // valid until the next call. Empty where nothing is recalled: then the step's own tasks are to
  // run.
  std::span<const AttentionTask> Widen(const LayerStep& step);
  // After the widened tasks have run: adds up the mass of resident blocks in the step's own tasks,
  // and notes what resident and recalled blocks have earned.
  void ShareMass(const LayerStep& step);

  const RecallStore& store() const { return store_; }
  std::int64_t recalled_blocks() const;        // now, over all layers and KV heads
  double seconds() const { return seconds_; }  // spent on storing and choosing

 private:
  // A block that a KV head has chosen; the slot may meanwhile hold another.
  struct Choice {
    std::int64_t slot = 0;
    Position logical;
  };
  // What lasts of one KV head.
  struct Lane {
    RecallCadence cadence;
    std::vector<Choice> choice;  // in stream order
    // Since the group last evicted: what recalled blocks were given.
    std::vector<GivenMass> given;
  };
  // Queries of one KV head of the layer at hand that share a choice.
  struct Part {
    std::int64_t lane = 0;
    std::int64_t group = 0;        // in LayerStep::groups
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
  // A block that was weighed for a choice.
  struct Weighed {
    float mass;
    Choice choice;
  };
  std::int64_t FirstLane(const CacheGroup& group) const {
    return first_lane_[static_cast<std::size_t>(group.layer)] + group.first_kv_head;
  }
  void NoteGiven(const LayerStep& step);
  std::vector<GivenMass> GivenToRecalled(const CacheGroup& group) const;
  bool HasStored(const LayerStep& step) const;
  void ListParts(const LayerStep& step);
  void AddParts(const LayerStep& step, std::int64_t lane, std::int64_t group, std::int64_t head);
  std::span<Part> parts() { return std::span(parts_).first(part_count_); }
  std::span<const Part> parts() const { return std::span(parts_).first(part_count_); }
  std::int64_t VotersOf(const Part& part) const { return std::min(part.queries, config_.queries); }
  AttentionInput Voters(const LayerStep& step, const Part& part) const;
  void WeighCandidates(const LayerStep& step);
  void FindCandidates(const LayerStep& step, Part* part) const;
  void PlaceCandidates(const LayerStep& step, Part* part) const;
  void KeepHeaviest(const LayerStep& step, const Part& part);
  void NoteGain(const LayerStep& step, const Part& part, std::span<const Weighed> kept);
  void MergeChoice(const LayerStep& step, Part* part) const;
  AttentionTask TaskOf(const LayerStep& step, Part* part) const;
  AttentionBlock StoredAt(const Part& part, std::int64_t slot, const BlockPlacement& place) const;
  void Extend(RotationTable* rotation) const;

  RecallConfig config_;
  std::int64_t block_size_;
  std::vector<std::int64_t> first_lane_;  // [layers], of the layer's KV heads; -1: never recalls
  RecallStore store_;
  std::vector<Lane> lanes_;
  // [groups, entries]: what resident blocks were given since the group last evicted.
  std::vector<std::vector<double>> given_;
  bool in_prompt_ = true;
  // Of the layer at hand. Parts beyond the count keep their memory for steps that have more.
  std::vector<Part> parts_;
  std::size_t part_count_ = 0;
  std::vector<AttentionTask> tasks_;
  std::vector<Weighed> weighed_;
  std::vector<float> sketches_;
  double seconds_ = 0.0;
};

}  // namespace carousel
