// SPDX-License-Identifier: Apache-2.0
// What recall makes of one layer's attention tasks, for one sequence: the tasks that weigh
// candidates, then the layer's own with what is recalled beside what is resident. It runs none of
// them.
//
// A choice is made for each few tokens of a prompt, by the last of them, and for each token or few
// tokens of an answer (recall_cadence.h); so the queries of one step attend to different blocks.
// What is recalled is read where it lies and stands in stream order.
#pragma once

#include <cstdint>
#include <span>
#include <vector>

#include "attention/paged_attention.h"
#include "engine/recall_chooser.h"
#include "engine/recall_part.h"
#include "engine/recall_state.h"

namespace carousel {

class RecallTasks {
 public:
  // `state` outlives it; a step changes its pending part alone.
  explicit RecallTasks(RecallState* state) : state_(state) {}

  // Begins a layer. Returns tasks whose mass says which blocks are recalled, to be run before
  // Widen; valid until then. Empty where nothing chooses.
  std::span<const AttentionTask> Weigh(const RecallLayer& layer);
  // The layer's tasks with what is recalled, one for each KV head and queries that share a choice;
  // valid until the next layer. Empty where nothing is recalled: then the layer's own tasks are to
  // run.
  std::span<const AttentionTask> Widen(const RecallLayer& layer);
  // After the widened tasks have run: adds up the mass of resident blocks in the layer's own tasks,
  // and notes what resident and recalled blocks have earned.
  void ShareMass(const RecallLayer& layer);
  // Those of the layer at hand; none where nothing is recalled.
  std::span<const RecallPart> layer_parts() const { return std::span(parts_).first(part_count_); }

 private:
  std::span<RecallPart> parts() { return std::span(parts_).first(part_count_); }
  bool HasStored(const RecallLayer& layer) const;
  void ListParts(const RecallLayer& layer);
  void AddParts(const RecallLayer& layer, std::int64_t lane, std::int64_t group, std::int64_t head);
  void ExtendRotation(RotationTable* rotation);
  void Choose(const RecallLayer& layer, const RecallPart& part);
  void MergeChoice(const RecallLayer& layer, RecallPart* part);
  AttentionTask TaskOf(const RecallLayer& layer, RecallPart* part) const;
  void NoteGiven(const RecallLayer& layer);

  RecallState* state_;
  // Of the layer at hand. Parts beyond the count keep their memory for steps that have more.
  std::vector<RecallPart> parts_;
  std::size_t part_count_ = 0;
  std::vector<AttentionTask> tasks_;
  std::vector<WeighedBlock> ranked_;
};

}  // namespace carousel
