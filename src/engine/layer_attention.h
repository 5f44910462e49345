// SPDX-License-Identifier: Apache-2.0
// The attention that a model asks for, over the rows of one or many sequences: each sequence's keys
// and values are written, and all of a layer's tasks run side by side. What a stage of a sequence
// (step_plan.h) recalls can hang on the stage before it: then they run one after another.
#pragma once

#include <cstdint>
#include <span>
#include <vector>

#include "attention/paged_attention.h"
#include "carousel/model.h"
#include "engine/cache_memory.h"
#include "engine/sequence.h"

namespace carousel {

// Told of each stage of a step when it has attended in a layer, while what it recalls is at hand
// (RecallTasks::layer_parts). For tests.
class AttentionWatcher {
 public:
  virtual ~AttentionWatcher() = default;
  virtual void SeeStage(std::int64_t layer, const Sequence& sequence, std::int64_t stage) = 0;
};

class LayerAttention final : public AttentionCallback {
 public:
  // `memory` outlives it.
  explicit LayerAttention(CacheMemory* memory) : memory_(memory) {}

  // The sequences of the next step, whose plans are made. Their rows follow one another from row 0.
  void Begin(std::span<Sequence* const> sequences);
  void Begin(Sequence* sequence) { Begin({&sequence, 1}); }
  // CHECKs the layer and that there are at least as many rows as the sequences have; those beyond
  // are padding, and their rows of `out` are not written.
  void Attend(std::int64_t layer, std::int64_t rows, const float* q, const float* k, const float* v,
              float* out) override;

  double seconds() const { return seconds_; }  // inside Attend, ever
  // Outlives this, or null is given in time.
  void Watch(AttentionWatcher* watcher) { watcher_ = watcher; }

 private:
  struct Member {
    Sequence* sequence = nullptr;
    std::int64_t first_row = 0;
  };
  // A stage of a sequence in the layer at hand.
  struct Part {
    Sequence* sequence = nullptr;
    std::int64_t stage = 0;
    std::size_t first_task = 0;  // of tasks_
    std::size_t tasks = 0;
    bool widened = false;
  };
  RecallLayer LayerOf(const Part& part, std::int64_t layer) const;
  void AddParts(std::int64_t layer, std::int64_t round, const float* q, float* out);
  void WeighCandidates(std::int64_t layer);
  void WidenTasks(std::int64_t layer);

  CacheMemory* memory_;
  std::vector<Member> members_;
  std::int64_t rows_ = 0;               // of all sequences
  std::int64_t rounds_ = 0;             // of the kernel in a layer
  std::vector<Part> parts_;             // of the round at hand
  std::vector<AttentionTask> tasks_;    // without recall
  std::vector<AttentionTask> running_;  // of one run of the kernel
  double seconds_ = 0.0;
  AttentionWatcher* watcher_ = nullptr;
};

}  // namespace carousel
