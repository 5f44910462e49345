// SPDX-License-Identifier: Apache-2.0
#include "engine/recall.h"

#include <algorithm>
#include <cstdlib>

#include "attention/recall_sketch.h"
#include "base/clock.h"
#include "base/parallel.h"

namespace carousel {
namespace {

// So many times the wanted blocks are judged by their keys, and at least kFewestCandidates: the
// sketches' best 32 of 110 to 130 blocks hold 98 to 100 % of the mass of the true best 8, and yet
// miss, once in a hundred choices, the one block that a retrieval head looks for (docs/decisions:
// recall, what recall finds).
constexpr std::int64_t kCandidatesPerBlock = 4;

RecallStoreOptions StoreOptions(const EngineSettings& settings) {
  return {.lanes = settings.recall_lanes,
          .file = settings.config.recall.store_file,
          .limit_bytes = settings.config.recall.limit_bytes,
          .limit_blocks = settings.config.recall.limit_tokens / settings.config.cache.block_size};
}

}  // namespace

Recall::Recall(const EngineSettings& settings, const std::vector<AttentionLayerSpec>& layers)
    : config_(settings.config.recall),
      block_size_(settings.config.cache.block_size),
      store_(StoreOptions(settings)),
      choices_(settings.recall_lanes.size()) {
  std::int64_t lane = 0;
  for (const AttentionLayerSpec& layer : layers) {
    const bool recalls = Recalls(layer);
    first_lane_.push_back(recalls ? lane : -1);
    if (recalls) lane += layer.kv_heads;
  }
}

void Recall::Store(const CacheGroup& group, const TableEntry& entry, const std::byte* data,
                   const BlockShape& shape, RotationTable* rotation) {
  const std::int64_t first = first_lane_[static_cast<std::size_t>(group.layer)];
  if (first < 0) return;
  const auto begin = Clock::now();
  if (rotation != nullptr) rotation->Extend(entry.written.value / block_size_);
  sketch_.resize(static_cast<std::size_t>(SketchDepth(shape.key_dim)));
  for (std::int64_t head = 0; head < group.kv_heads; ++head) {
    const BlockHead block{.data = data, .shape = &shape, .head = head};
    SketchBlock(block, rotation, entry.written, sketch_);
    store_.Add(first + group.first_kv_head + head, entry.written, entry.logical, block, sketch_);
  }
  seconds_ += SecondsSince(begin);
}

void Recall::BeginStep(bool is_prompt) {
  // What the prompt's last queries chose holds for the first tokens of the answer: its first token
  // alone knows less of what is asked.
  decode_steps_ = is_prompt ? 0 : decode_steps_ + 1;
}

void Recall::Clear() {
  store_.Clear();
  for (auto& choice : choices_) choice.clear();
  decode_steps_ = 0;
}

void Recall::ListHeads(const LayerStep& step) {
  std::size_t count = 0;
  for (std::size_t group = 0; group < step.groups.size(); ++group) {
    const CacheGroup& of = step.groups[group];
    const std::int64_t first = first_lane_[static_cast<std::size_t>(of.layer)] + of.first_kv_head;
    for (std::int64_t i = 0; i < of.kv_heads; ++i, ++count) {
      if (heads_.size() <= count) heads_.emplace_back();
      heads_[count].lane = first + i;
      heads_[count].group = static_cast<std::int64_t>(group);
      heads_[count].head = i;
    }
  }
  heads_.resize(count);
}

AttentionBlock Recall::StoredAt(const Head& head, std::int64_t slot,
                                const BlockPlacement& place) const {
  return {.data = store_.data(head.lane, slot),
          .shape = &store_.shape(head.lane),
          .first_head = 0,
          .tokens = block_size_,
          .shift_blocks = place.shift / block_size_,
          .attention = place.attention,
          .logical = store_.slots(head.lane)[static_cast<std::size_t>(slot)].logical};
}

// Makes every row of the table available that the heads' blocks need.
void Recall::Extend(RotationTable* rotation) const {
  if (rotation == nullptr) return;
  std::int64_t largest = 0;
  for (const Head& head : heads_) {
    for (const AttentionBlock& block : head.blocks)
      largest = std::max(largest, std::abs(block.shift_blocks));
  }
  rotation->Extend(largest);
}

namespace {

// The input of one KV head of a task, with the last `queries` queries only.
AttentionInput LastQueries(const AttentionInput& input, std::int64_t queries) {
  AttentionInput last = input;
  const std::int64_t skipped = input.queries - queries;
  last.q += skipped * input.layer->query_heads * input.layer->key_dim;
  last.first_query_attention += skipped;
  last.first_query_logical += skipped;
  last.queries = last.counted_queries = queries;
  return last;
}

// From where the model wrote a query to behind all that is resident, in tokens: what a candidate
// that was written at 0 would need.
std::int64_t FarShift(const Recall::LayerStep& step, std::int64_t group) {
  return step.tables
      ->CandidatePlacement(step.first_group + group,
                           {.written = Position{0}, .logical = Position{0}})
      .shift;
}

}  // namespace

// The blocks that are worth a look at their keys: all, if they are few; else by their sketches.
void Recall::FindCandidates(const LayerStep& step, Head* head) const {
  const auto slots = store_.slots(head->lane);
  head->candidates.clear();
  for (std::size_t slot = 0; slot < slots.size(); ++slot) {
    if (slots[slot].present()) head->candidates.push_back(static_cast<std::int64_t>(slot));
  }
  const std::int64_t wanted = std::max(config_.blocks * kCandidatesPerBlock,
                                       decode_steps_ == 0 ? kFewestCandidates : kFewestOfAnswers);
  if (std::ssize(head->candidates) > wanted) {
    const AttentionInput& all = step.tasks[static_cast<std::size_t>(head->group)].input;
    const AttentionInput input = LastQueries(all, std::min(all.queries, config_.queries));
    head->mass.resize(slots.size());
    EstimateMass({.layer = input.layer,
                  .kv_head = input.first_kv_head + head->head,
                  .q = input.q,
                  .queries = input.queries,
                  .rotation = step.rotation,
                  .shift_blocks = FarShift(step, head->group) / block_size_,
                  .distance = input.first_query_attention.value,
                  .block_size = block_size_,
                  .sketches = store_.sketches(head->lane),
                  .slots = slots},
                 head->mass);
    std::nth_element(head->candidates.begin(), head->candidates.begin() + wanted,
                     head->candidates.end(), [&](std::int64_t left, std::int64_t right) {
                       const float left_mass = head->mass[static_cast<std::size_t>(left)];
                       const float right_mass = head->mass[static_cast<std::size_t>(right)];
                       return left_mass != right_mass ? left_mass > right_mass : left < right;
                     });
    head->candidates.resize(static_cast<std::size_t>(wanted));
  }
  std::sort(head->candidates.begin(), head->candidates.end(),
            [&](std::int64_t left, std::int64_t right) {
              return slots[static_cast<std::size_t>(left)].logical <
                     slots[static_cast<std::size_t>(right)].logical;
            });
}

// The head's resident blocks where they are, and its candidates at the far end; in stream order.
void Recall::PlaceCandidates(const LayerStep& step, Head* head) const {
  const auto slots = store_.slots(head->lane);
  const auto resident = step.tasks[static_cast<std::size_t>(head->group)].input.blocks;
  head->blocks.clear();
  head->placements.clear();
  std::size_t next = 0;
  const auto add_resident = [&](Position before) {
    for (; next < resident.size() && resident[next].logical < before; ++next) {
      head->placements.push_back({.index = static_cast<std::int64_t>(next)});
      head->blocks.push_back(resident[next]);
      head->blocks.back().first_head = head->head;
    }
  };
  for (std::size_t i = 0; i < head->candidates.size(); ++i) {
    const StoredBlock& stored = slots[static_cast<std::size_t>(head->candidates[i])];
    add_resident(stored.logical);
    BlockPlacement place = step.tables->CandidatePlacement(
        step.first_group + head->group, {.written = stored.written, .logical = stored.logical});
    place.index = static_cast<std::int64_t>(i);
    if (step.rotation == nullptr) place.shift = 0;
    head->placements.push_back(place);
    head->blocks.push_back(StoredAt(*head, head->candidates[i], place));
  }
  add_resident(resident.back().logical + 1);
}

// Of the candidates, those that got most mass.
void Recall::KeepHeaviest(const Head& head) {
  struct Weighed {
    float mass;
    Choice choice;
  };
  std::vector<Weighed> weighed;
  for (std::size_t i = 0; i < head.blocks.size(); ++i) {
    if (!head.placements[i].recalled) continue;
    float mass = 0.0F;
    for (std::int64_t t = 0; t < block_size_; ++t)
      mass += head.mass[i * static_cast<std::size_t>(block_size_) + static_cast<std::size_t>(t)];
    weighed.push_back({mass,
                       {.slot = head.candidates[static_cast<std::size_t>(head.placements[i].index)],
                        .logical = head.blocks[i].logical}});
  }
  const auto wanted = std::min<std::ptrdiff_t>(config_.blocks, std::ssize(weighed));
  std::partial_sort(weighed.begin(), weighed.begin() + wanted, weighed.end(),
                    [](const Weighed& left, const Weighed& right) {
                      return left.mass != right.mass ? left.mass > right.mass
                                                     : left.choice.logical > right.choice.logical;
                    });
  auto& choice = choices_[static_cast<std::size_t>(head.lane)];
  choice.clear();
  for (std::ptrdiff_t i = 0; i < wanted; ++i)
    choice.push_back(weighed[static_cast<std::size_t>(i)].choice);
  std::sort(choice.begin(), choice.end(),
            [](const Choice& left, const Choice& right) { return left.logical < right.logical; });
}

void Recall::Choose(const LayerStep& step) {
  for (std::int64_t group = 0; group < std::ssize(step.groups); ++group) {
    const std::int64_t shift = FarShift(step, group);
    if (step.rotation != nullptr) step.rotation->Extend(std::abs(shift) / block_size_);
  }
  ParallelFor(std::ssize(heads_), [&](std::int64_t i) {
    Head& head = heads_[static_cast<std::size_t>(i)];
    FindCandidates(step, &head);
    PlaceCandidates(step, &head);
  });
  Extend(step.rotation);
  tasks_.clear();
  for (Head& head : heads_) {
    const AttentionInput& all = step.tasks[static_cast<std::size_t>(head.group)].input;
    AttentionInput input = LastQueries(all, std::min(all.queries, config_.queries));
    input.first_kv_head += head.head;
    input.kv_heads = 1;
    input.blocks = head.blocks;
    head.mass.resize(head.blocks.size() * static_cast<std::size_t>(block_size_));
    tasks_.push_back({.input = input, .output = {.out = nullptr, .token_mass = head.mass}});
  }
  step.attention->Run(tasks_);
  for (const Head& head : heads_) KeepHeaviest(head);
}

// The blocks of one head's task: what is resident and what it has chosen and still can have.
void Recall::MergeChoice(const LayerStep& step, Head* head) const {
  const auto slots = store_.slots(head->lane);
  const auto resident = step.tasks[static_cast<std::size_t>(head->group)].input.blocks;
  head->recalled.clear();
  head->slots.clear();
  for (const Choice& choice : choices_[static_cast<std::size_t>(head->lane)]) {
    const StoredBlock& stored = slots[static_cast<std::size_t>(choice.slot)];
    if (!stored.present() || stored.logical != choice.logical) continue;
    head->recalled.push_back({.written = stored.written, .logical = stored.logical});
    head->slots.push_back(choice.slot);
  }
  step.tables->Merge(step.first_group + head->group, head->recalled, &head->placements);
  head->blocks.clear();
  for (BlockPlacement& place : head->placements) {
    if (step.rotation == nullptr) place.shift = 0;
    if (place.recalled) {
      head->blocks.push_back(
          StoredAt(*head, head->slots[static_cast<std::size_t>(place.index)], place));
      continue;
    }
    head->blocks.push_back(resident[static_cast<std::size_t>(place.index)]);
    head->blocks.back().first_head = head->head;
    head->blocks.back().attention = place.attention;
    head->blocks.back().shift_blocks = place.shift / block_size_;
  }
}

std::span<const AttentionTask> Recall::Widen(const LayerStep& step) {
  tasks_.clear();
  const std::int64_t first = first_lane_[static_cast<std::size_t>(step.groups.front().layer)];
  if (first < 0) return tasks_;
  ListHeads(step);
  const bool nothing = std::all_of(heads_.begin(), heads_.end(),
                                   [&](const Head& head) { return store_.blocks(head.lane) == 0; });
  if (nothing) return tasks_;
  const auto begin = Clock::now();
  if (decode_steps_ % config_.every == 0) Choose(step);
  tasks_.clear();
  for (Head& head : heads_) MergeChoice(step, &head);
  Extend(step.rotation);
  for (Head& head : heads_) {
    const AttentionTask& task = step.tasks[static_cast<std::size_t>(head.group)];
    AttentionInput input = task.input;
    input.first_kv_head += head.head;
    input.kv_heads = 1;
    input.blocks = head.blocks;
    input.first_query_attention = step.tables->NextAttentionPosition(step.first_group + head.group,
                                                                     std::ssize(head.recalled)) +
                                  -input.queries;
    head.mass.resize(
        input.counted_queries > 0 ? head.blocks.size() * static_cast<std::size_t>(block_size_) : 0);
    tasks_.push_back({.input = input, .output = {.out = task.output.out, .token_mass = head.mass}});
  }
  seconds_ += SecondsSince(begin);
  return tasks_;
}

void Recall::ShareMass(const LayerStep& step) {
  for (const AttentionTask& task : step.tasks) {
    std::fill(task.output.token_mass.begin(), task.output.token_mass.end(), 0.0F);
  }
  for (const Head& head : heads_) {
    if (head.mass.empty()) continue;
    const std::span<float> to = step.tasks[static_cast<std::size_t>(head.group)].output.token_mass;
    for (std::size_t i = 0; i < head.placements.size(); ++i) {
      const float* from = head.mass.data() + i * static_cast<std::size_t>(block_size_);
      const BlockPlacement& place = head.placements[i];
      if (!place.recalled) {
        float* slots = to.data() + place.index * block_size_;
        for (std::int64_t t = 0; t < block_size_; ++t) slots[t] += from[t];
        continue;
      }
      double mass = 0.0;
      for (std::int64_t t = 0; t < block_size_; ++t) mass += static_cast<double>(from[t]);
      store_.AddMass(head.lane, head.slots[static_cast<std::size_t>(place.index)], mass);
    }
  }
}

std::int64_t Recall::recalled_blocks() const {
  std::int64_t blocks = 0;
  for (const auto& choice : choices_) blocks += std::ssize(choice);
  return blocks;
}

}  // namespace carousel
