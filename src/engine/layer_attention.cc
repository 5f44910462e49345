// SPDX-License-Identifier: Apache-2.0
#include "engine/layer_attention.h"

#include <algorithm>

#include "base/check.h"
#include "base/clock.h"

namespace carousel {

void LayerAttention::Begin(std::span<Sequence* const> sequences) {
  members_.clear();
  rows_ = 0;
  rounds_ = 1;
  for (Sequence* sequence : sequences) {
    members_.push_back({.sequence = sequence, .first_row = rows_});
    rows_ += sequence->plan().tokens;
    if (sequence->recall() != nullptr) rounds_ = std::max(rounds_, sequence->plan().stage_count);
  }
}

RecallLayer LayerAttention::LayerOf(const Part& part, std::int64_t layer) const {
  return part.sequence->LayerForRecall(layer, part.stage,
                                       std::span(tasks_).subspan(part.first_task, part.tasks));
}

// The stages that run in this round: all of a sequence in the first, or one in each where it
// recalls.
void LayerAttention::AddParts(std::int64_t layer, std::int64_t round, const float* q, float* out) {
  const AttentionLayerSpec& spec = memory_->layers()[static_cast<std::size_t>(layer)];
  const std::int64_t q_row = spec.query_heads * spec.key_dim;
  const std::int64_t out_row = spec.query_heads * spec.value_dim;
  parts_.clear();
  tasks_.clear();
  for (const Member& member : members_) {
    const std::int64_t stages = member.sequence->plan().stage_count;
    const bool takes_turns = member.sequence->recall() != nullptr;
    const std::int64_t first = takes_turns ? round : 0;
    const std::int64_t end = takes_turns ? std::min(round + 1, stages) : (round == 0 ? stages : 0);
    for (std::int64_t stage = first; stage < end; ++stage) {
      Part part{.sequence = member.sequence, .stage = stage, .first_task = tasks_.size()};
      member.sequence->AddTasks(layer, stage, q + member.first_row * q_row,
                                out + member.first_row * out_row, &tasks_);
      part.tasks = tasks_.size() - part.first_task;
      parts_.push_back(part);
    }
  }
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
  for (const Member& member : members_)
    member.sequence->Write(layer, k + member.first_row * k_row, v + member.first_row * v_row);
  for (std::int64_t round = 0; round < rounds_; ++round) {
    AddParts(layer, round, q, out);
    WeighCandidates(layer);
    WidenTasks(layer);
    memory_->attention().Run(running_);
    for (const Part& part : parts_) {
      if (part.widened) part.sequence->recall_tasks()->ShareMass(LayerOf(part, layer));
      if (watcher_ != nullptr) watcher_->SeeStage(layer, *part.sequence, part.stage);
    }
  }
  for (const Member& member : members_) {
    member.sequence->Trace(layer, q + member.first_row * q_row, k + member.first_row * k_row,
                           v + member.first_row * v_row);
  }
  seconds_ += SecondsSince(begin);
}

}  // namespace carousel
