// SPDX-License-Identifier: Apache-2.0
#include "engine/layer_attention.h"

#include "base/check.h"
#include "base/clock.h"

namespace carousel {

void LayerAttention::Begin(std::span<Sequence* const> sequences) {
  parts_.clear();
  rows_ = 0;
  for (Sequence* sequence : sequences) {
    parts_.push_back({.sequence = sequence, .first_row = rows_});
    rows_ += sequence->plan().tokens;
  }
}

std::vector<const Sequence*> LayerAttention::sequences() const {
  std::vector<const Sequence*> all;
  for (const Part& part : parts_) all.push_back(part.sequence);
  return all;
}

RecallLayer LayerAttention::LayerOf(const Part& part, std::int64_t layer) const {
  return part.sequence->LayerForRecall(layer,
                                       std::span(tasks_).subspan(part.first_task, part.tasks));
}

// Runs what says which blocks are recalled, of all sequences at once.
void LayerAttention::WeighCandidates(std::int64_t layer) {
  running_.clear();
  for (const Part& part : parts_) {
    RecallTasks* recall = part.sequence->recall_tasks();
    if (recall == nullptr) continue;
    const auto begin = Clock::now();
    const auto weighing = recall->Weigh(LayerOf(part, layer));
    running_.insert(running_.end(), weighing.begin(), weighing.end());
    part.sequence->recall()->AddSeconds(SecondsSince(begin));
  }
  if (running_.empty()) return;
  const auto begin = Clock::now();
  memory_->attention().Run(running_);
  // One sequence's run alone is its own; of several each has an even share.
  const double share = SecondsSince(begin) / static_cast<double>(parts_.size());
  for (const Part& part : parts_) {
    if (part.sequence->recall() != nullptr) part.sequence->recall()->AddSeconds(share);
  }
}

// The tasks of all sequences, with what is recalled where something is.
void LayerAttention::WidenTasks(std::int64_t layer) {
  running_.clear();
  for (Part& part : parts_) {
    const auto own = std::span<const AttentionTask>(tasks_).subspan(part.first_task, part.tasks);
    std::span<const AttentionTask> widened;
    if (RecallTasks* recall = part.sequence->recall_tasks(); recall != nullptr) {
      const auto begin = Clock::now();
      widened = recall->Widen(LayerOf(part, layer));
      part.sequence->recall()->AddSeconds(SecondsSince(begin));
    }
    part.widened = !widened.empty();
    const auto tasks = part.widened ? widened : own;
    running_.insert(running_.end(), tasks.begin(), tasks.end());
  }
}

void LayerAttention::Attend(std::int64_t layer, std::int64_t rows, const float* q, const float* k,
                            const float* v, float* out) {
  const auto begin = Clock::now();
  // A model that is an embedder's own can be wrong in both.
  CAROUSEL_CHECK_GE(layer, 0);
  CAROUSEL_CHECK_LT(layer, std::ssize(memory_->layers()));
  CAROUSEL_CHECK_GE(rows, rows_);
  const AttentionLayerSpec& spec = memory_->layers()[static_cast<std::size_t>(layer)];
  const std::int64_t q_row = spec.query_heads * spec.key_dim;
  const std::int64_t k_row = spec.kv_heads * spec.key_dim;
  const std::int64_t v_row = spec.kv_heads * spec.value_dim;
  const std::int64_t out_row = spec.query_heads * spec.value_dim;
  tasks_.clear();
  for (Part& part : parts_) {
    const std::int64_t row = part.first_row;
    part.sequence->Write(layer, k + row * k_row, v + row * v_row);
    part.first_task = tasks_.size();
    part.sequence->AddTasks(layer, q + row * q_row, out + row * out_row, &tasks_);
    part.tasks = tasks_.size() - part.first_task;
  }
  WeighCandidates(layer);
  WidenTasks(layer);
  memory_->attention().Run(running_);
  for (const Part& part : parts_) {
    if (part.widened) part.sequence->recall_tasks()->ShareMass(LayerOf(part, layer));
    const std::int64_t row = part.first_row;
    part.sequence->Trace(layer, q + row * q_row, k + row * k_row, v + row * v_row);
  }
  seconds_ += SecondsSince(begin);
}

}  // namespace carousel
