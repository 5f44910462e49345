// SPDX-License-Identifier: Apache-2.0
#include "engine/recall_tasks.h"

#include <algorithm>
#include <cstdlib>
#include <numeric>

#include "base/parallel.h"

namespace carousel {

// The parts of a KV head's queries: in an answer all are one, of a prompt one comes after another.
void RecallTasks::AddParts(const RecallLayer& layer, std::int64_t lane, std::int64_t group,
                           std::int64_t head) {
  RecallCadence& cadence = state_->Change(lane).cadence;
  const std::int64_t queries = layer.tasks.front().input.queries;
  const std::int64_t together = layer.is_prompt ? cadence.BeginPrompt(state_->config()) : queries;
  const bool due = layer.is_prompt || cadence.BeginAnswerStep();
  for (std::int64_t first = 0; first < queries; first += together, ++part_count_) {
    if (part_count_ == parts_.size()) parts_.emplace_back();
    RecallPart& part = parts_[part_count_];
    part.lane = lane;
    part.group = group;
    part.head = head;
    part.first_query = first;
    part.queries = std::min(together, queries - first);
    part.chooses = due && state_->store().blocks(lane) > 0;
  }
}

void RecallTasks::ListParts(const RecallLayer& layer) {
  for (std::size_t group = 0; group < layer.groups.size(); ++group) {
    const CacheGroup& of = layer.groups[group];
    for (std::int64_t head = 0; head < of.kv_heads; ++head)
      AddParts(layer, state_->FirstLane(of) + head, static_cast<std::int64_t>(group), head);
  }
}

bool RecallTasks::HasStored(const RecallLayer& layer) const {
  if (!state_->Recalls(layer.groups.front())) return false;
  for (const CacheGroup& group : layer.groups) {
    const std::int64_t first = state_->FirstLane(group);
    for (std::int64_t lane = first; lane < first + group.kv_heads; ++lane) {
      if (state_->store().blocks(lane) > 0) return true;
    }
  }
  return false;
}

// Makes every row of the table available that the parts' blocks need.
void RecallTasks::ExtendRotation(RotationTable* rotation) {
  if (rotation == nullptr) return;
  std::int64_t largest = 0;
  for (const RecallPart& part : parts()) {
    for (const AttentionBlock& block : part.blocks)
      largest = std::max(largest, std::abs(block.shift_blocks));
  }
  rotation->Extend(largest);
}

std::span<const AttentionTask> RecallTasks::Weigh(const RecallLayer& layer) {
  tasks_.clear();
  part_count_ = 0;
  state_->BeginStage(layer.stage);
  if (!HasStored(layer)) return tasks_;
  ListParts(layer);
  const std::int64_t block_size = layer.tables->block_size();
  for (std::int64_t group = 0; group < std::ssize(layer.groups); ++group) {
    const std::int64_t shift = FarShift(*state_, layer, group);
    if (layer.rotation != nullptr) layer.rotation->Extend(std::abs(shift) / block_size);
  }
  ParallelFor(std::ssize(parts()), [&](std::int64_t i) {
    RecallPart& part = parts()[static_cast<std::size_t>(i)];
    part.blocks.clear();
    if (!part.chooses) return;
    FindCandidates(*state_, layer, &part);
    PlaceCandidates(*state_, layer, &part);
  });
  ExtendRotation(layer.rotation);
  for (RecallPart& part : parts()) {
    if (!part.chooses) continue;
    AttentionInput input = Voters(state_->config(), layer, part);
    input.blocks = part.blocks;
    part.mass.resize(part.blocks.size() * static_cast<std::size_t>(block_size));
    tasks_.push_back({.input = input, .output = {.out = nullptr, .token_mass = part.mass}});
  }
  return tasks_;
}

// Of the part's candidates those that got most mass are the lane's choice from here on.
void RecallTasks::Choose(const RecallLayer& layer, const RecallPart& part) {
  const RecallConfig& config = state_->config();
  RankCandidates(part, layer.tables->block_size(), config.blocks, &ranked_);
  const auto kept = std::span<const WeighedBlock>(ranked_).first(
      std::min(static_cast<std::size_t>(config.blocks), ranked_.size()));
  RecallLaneState& lane = state_->Change(part.lane);
  const AttentionLayerSpec& spec = *layer.tasks.front().input.layer;
  const double gain =
      GainOver(lane.choice, kept, ranked_) /
      static_cast<double>(VotersOf(config, part) * (spec.query_heads / spec.kv_heads));
  if (!layer.is_prompt) {
    lane.cadence.NoteAnswer(config, gain);
  } else if (part.first_query > 0) {
    // What the first choice of a step gains over one from before the last eviction says little.
    lane.cadence.NotePrompt(gain);
  }
  lane.choice.clear();
  for (const WeighedBlock& block : kept) lane.choice.push_back(block.choice);
  std::sort(lane.choice.begin(), lane.choice.end(),
            [](const RecallChoice& left, const RecallChoice& right) {
              return left.logical < right.logical;
            });
}

// The blocks of a part's task: what is resident and what it has chosen and still can have.
void RecallTasks::MergeChoice(const RecallLayer& layer, RecallPart* part) {
  const auto slots = state_->store().slots(part->lane);
  const auto resident = layer.tasks[static_cast<std::size_t>(part->group)].input.blocks;
  part->recalled.clear();
  part->slots.clear();
  for (const RecallChoice& choice : state_->Change(part->lane).choice) {
    const std::int64_t slot = state_->SlotOf(part->lane, choice);
    if (slot < 0) continue;
    const StoredBlock& stored = slots[static_cast<std::size_t>(slot)];
    part->recalled.push_back({.written = stored.written, .logical = stored.logical});
    part->slots.push_back(slot);
  }
  layer.tables->Merge(layer.first_group + part->group, part->recalled, &part->placements);
  part->blocks.clear();
  for (BlockPlacement& place : part->placements) {
    if (layer.rotation == nullptr) place.shift = 0;
    if (place.recalled) {
      part->blocks.push_back(StoredBlockAt(
          *state_, part->lane, part->slots[static_cast<std::size_t>(place.index)], place));
      continue;
    }
    part->blocks.push_back(resident[static_cast<std::size_t>(place.index)]);
    part->blocks.back().first_head = part->head;
    part->blocks.back().attention = place.attention;
    part->blocks.back().shift_blocks = place.shift / layer.tables->block_size();
  }
}

// A part's queries over its blocks.
AttentionTask RecallTasks::TaskOf(const RecallLayer& layer, RecallPart* part) const {
  const AttentionTask& whole = layer.tasks[static_cast<std::size_t>(part->group)];
  AttentionInput input = SomeQueries(whole.input, part->first_query, part->queries);
  input.first_kv_head += part->head;
  input.kv_heads = 1;
  input.blocks = part->blocks;
  input.first_query_attention = layer.tables->NextAttentionPosition(layer.first_group + part->group,
                                                                    std::ssize(part->recalled)) +
                                (part->first_query - whole.input.queries - layer.tokens_after);
  part->mass.resize(input.counted_queries > 0
                        ? part->blocks.size() * static_cast<std::size_t>(input.block_size)
                        : 0);
  float* out =
      whole.output.out + part->first_query * input.layer->query_heads * input.layer->value_dim;
  return {.input = input, .output = {.out = out, .token_mass = part->mass}};
}

std::span<const AttentionTask> RecallTasks::Widen(const RecallLayer& layer) {
  tasks_.clear();
  // The parts of a KV head follow one another, and each has the choice that was made last.
  for (RecallPart& part : parts()) {
    if (part.chooses) Choose(layer, part);
    MergeChoice(layer, &part);
  }
  ExtendRotation(layer.rotation);
  for (RecallPart& part : parts()) tasks_.push_back(TaskOf(layer, &part));
  return tasks_;
}

void RecallTasks::ShareMass(const RecallLayer& layer) {
  if (part_count_ == 0) return;
  const std::int64_t block_size = layer.tables->block_size();
  for (const AttentionTask& task : layer.tasks) {
    std::fill(task.output.token_mass.begin(), task.output.token_mass.end(), 0.0F);
  }
  for (const RecallPart& part : parts()) {
    if (part.mass.empty()) continue;
    const std::span<float> to = layer.tasks[static_cast<std::size_t>(part.group)].output.token_mass;
    for (std::size_t i = 0; i < part.placements.size(); ++i) {
      const BlockPlacement& place = part.placements[i];
      if (place.recalled) continue;
      const float* from = part.mass.data() + i * static_cast<std::size_t>(block_size);
      float* slots = to.data() + place.index * block_size;
      for (std::int64_t t = 0; t < block_size; ++t) slots[t] += from[t];
    }
  }
  if (layer.weighs && state_->config().promotion > 0.0) NoteGiven(layer);
}

void RecallTasks::NoteGiven(const RecallLayer& layer) {
  const std::int64_t block_size = layer.tables->block_size();
  for (const RecallPart& part : parts()) {
    if (part.mass.empty()) continue;
    std::vector<double>& resident = state_->ChangeGiven(layer.first_group + part.group);
    resident.resize(
        layer.tasks[static_cast<std::size_t>(part.group)].input.blocks.size());  // some are new
    for (std::size_t i = 0; i < part.placements.size(); ++i) {
      const auto from = part.mass.begin() + static_cast<std::ptrdiff_t>(i) * block_size;
      const double mass = std::accumulate(from, from + block_size, 0.0);
      const BlockPlacement& place = part.placements[i];
      if (!place.recalled) {
        resident[static_cast<std::size_t>(place.index)] += mass;
        continue;
      }
      AddMass(part.recalled[static_cast<std::size_t>(place.index)].logical, mass,
              &state_->Change(part.lane).given);
    }
  }
}

}  // namespace carousel
