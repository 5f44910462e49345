// SPDX-License-Identifier: Apache-2.0
#include "engine/recall.h"

#include <algorithm>
#include <cstdlib>
#include <new>
#include <numeric>

#include "attention/recall_sketch.h"
#include "base/clock.h"
#include "base/parallel.h"
#include "engine/keep_largest.h"

namespace carousel {
namespace {

// Of more than a few stored blocks so many times the wanted ones are judged by their keys, and at
// least kFewestCandidates or, in an answer, kFewestOfAnswers: sketches' best 32 of 110 to 130
// blocks hold 98 to 100 % of the mass of the true best 8, and yet miss, once in a hundred choices,
// the one block that a retrieval head looks for (docs/decisions: recall, what recall finds).
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
      lanes_(settings.recall_lanes.size()),
      given_(settings.groups.size()) {
  std::int64_t lane = 0;
  for (const AttentionLayerSpec& layer : layers) {
    const bool recalls = Recalls(layer);
    first_lane_.push_back(recalls ? lane : -1);
    if (recalls) lane += layer.kv_heads;
  }
}

void Recall::Store(const CacheGroup& group, const TableEntry& entry, const std::byte* data,
                   const BlockShape& shape, RotationTable* rotation) noexcept {
  if (first_lane_[static_cast<std::size_t>(group.layer)] < 0) return;
  const auto begin = Clock::now();
  try {
    if (rotation != nullptr) rotation->Extend(entry.written.value / block_size_);
    const auto depth = static_cast<std::size_t>(SketchDepth(shape.key_dim));
    sketches_.resize(static_cast<std::size_t>(group.kv_heads) * depth);
    for (std::int64_t head = 0; head < group.kv_heads; ++head) {
      SketchBlock({.data = data, .shape = &shape, .head = head}, rotation, entry.written,
                  std::span(sketches_).subspan(static_cast<std::size_t>(head) * depth, depth));
    }
    store_.Add(FirstLane(group), entry.written, entry.logical, {.data = data, .shape = &shape},
               sketches_);
  } catch (const std::bad_alloc&) {
    store_.Refuse(FirstLane(group), group.kv_heads);
  }
  seconds_ += SecondsSince(begin);
}

// What the group's recalled blocks were given that are still stored, all its KV heads together.
std::vector<GivenMass> Recall::GivenToRecalled(const CacheGroup& group) const {
  const std::int64_t first = FirstLane(group);
  std::vector<GivenMass> given;
  for (std::int64_t lane = first; lane < first + group.kv_heads; ++lane) {
    for (const GivenMass& block : lanes_[static_cast<std::size_t>(lane)].given)
      AddMass(block.logical, block.mass, &given);
  }
  std::erase_if(given, [&](const GivenMass& block) {
    for (std::int64_t lane = first; lane < first + group.kv_heads; ++lane) {
      if (store_.Find(lane, block.logical) < 0) return true;  // dropped for want of room
    }
    return false;
  });
  return given;
}

std::vector<Recall::Promotion> Recall::Promote(std::int64_t group_index, const CacheGroup& group,
                                               std::span<const TableEntry> entries,
                                               std::span<const std::int64_t> candidates) {
  std::vector<Promotion> promotions;
  if (first_lane_[static_cast<std::size_t>(group.layer)] < 0) return promotions;
  const auto begin = Clock::now();
  std::vector<double>& given = given_[static_cast<std::size_t>(group_index)];
  std::vector<GivenMass> resident;
  if (config_.promotion > 0.0) {
    for (const std::int64_t entry : candidates) {
      if (entry >= std::ssize(given)) break;  // no query that counts has seen it
      resident.push_back({.logical = entries[static_cast<std::size_t>(entry)].logical,
                          .mass = given[static_cast<std::size_t>(entry)]});
    }
  }
  const std::int64_t first = FirstLane(group);
  const std::vector<GivenMass> recalled =
      resident.empty() ? std::vector<GivenMass>() : GivenToRecalled(group);
  for (const Exchange& exchange : EarnedPlaces(resident, recalled, config_.promotion)) {
    const Position logical = recalled[exchange.recalled].logical;
    const auto slot = static_cast<std::size_t>(store_.Find(first, logical));
    promotions.push_back(
        {.leaves = candidates[exchange.resident],
         .returns = {.written = store_.slots(first)[slot].written, .logical = logical}});
  }
  given.clear();
  for (std::int64_t lane = first; lane < first + group.kv_heads; ++lane)
    lanes_[static_cast<std::size_t>(lane)].given.clear();
  seconds_ += SecondsSince(begin);
  return promotions;
}

void Recall::Read(const CacheGroup& group, Position logical, const BlockShape& shape,
                  std::byte* to) {
  for (std::int64_t head = 0; head < group.kv_heads; ++head) {
    const std::int64_t lane = FirstLane(group) + head;
    store_.Read(lane, store_.Find(lane, logical), shape, head, to);
  }
}

void Recall::Remove(const CacheGroup& group, Position logical) {
  const std::int64_t first = FirstLane(group);
  for (std::int64_t lane = first; lane < first + group.kv_heads; ++lane) {
    const std::int64_t slot = store_.Find(lane, logical);
    if (slot >= 0) store_.Remove(lane, slot);
  }
}

void Recall::BeginStep(bool is_prompt) { in_prompt_ = is_prompt; }

void Recall::Clear() {
  store_.Clear();
  std::fill(lanes_.begin(), lanes_.end(), Lane());
  for (std::vector<double>& given : given_) given.clear();
}

// The parts of a KV head's queries: in an answer all are one, of a prompt one comes after another.
void Recall::AddParts(const LayerStep& step, std::int64_t lane, std::int64_t group,
                      std::int64_t head) {
  RecallCadence& cadence = lanes_[static_cast<std::size_t>(lane)].cadence;
  const std::int64_t queries = step.tasks.front().input.queries;
  const std::int64_t together = in_prompt_ ? cadence.BeginPrompt(config_) : queries;
  const bool due = in_prompt_ || cadence.BeginAnswerStep();
  for (std::int64_t first = 0; first < queries; first += together, ++part_count_) {
    if (part_count_ == parts_.size()) parts_.emplace_back();
    Part& part = parts_[part_count_];
    part.lane = lane;
    part.group = group;
    part.head = head;
    part.first_query = first;
    part.queries = std::min(together, queries - first);
    part.chooses = due && store_.blocks(lane) > 0;
  }
}

void Recall::ListParts(const LayerStep& step) {
  part_count_ = 0;
  for (std::size_t group = 0; group < step.groups.size(); ++group) {
    const CacheGroup& of = step.groups[group];
    for (std::int64_t head = 0; head < of.kv_heads; ++head)
      AddParts(step, FirstLane(of) + head, static_cast<std::int64_t>(group), head);
  }
}

bool Recall::HasStored(const LayerStep& step) const {
  const std::int64_t first = first_lane_[static_cast<std::size_t>(step.groups.front().layer)];
  if (first < 0) return false;
  std::int64_t last = first;
  for (const CacheGroup& group : step.groups) last += group.kv_heads;
  for (std::int64_t lane = first; lane < last; ++lane) {
    if (store_.blocks(lane) > 0) return true;
  }
  return false;
}

AttentionBlock Recall::StoredAt(const Part& part, std::int64_t slot,
                                const BlockPlacement& place) const {
  return {.data = store_.data(part.lane, slot),
          .shape = &store_.shape(part.lane),
          .first_head = 0,
          .tokens = block_size_,
          .shift_blocks = place.shift / block_size_,
          .attention = place.attention,
          .logical = store_.slots(part.lane)[static_cast<std::size_t>(slot)].logical};
}

// Makes every row of the table available that the parts' blocks need.
void Recall::Extend(RotationTable* rotation) const {
  if (rotation == nullptr) return;
  std::int64_t largest = 0;
  for (const Part& part : parts()) {
    for (const AttentionBlock& block : part.blocks)
      largest = std::max(largest, std::abs(block.shift_blocks));
  }
  rotation->Extend(largest);
}

namespace {

// A task's input with some of its queries only, the first of them after `skipped` others.
AttentionInput SomeQueries(const AttentionInput& all, std::int64_t skipped, std::int64_t queries) {
  AttentionInput some = all;
  some.q += skipped * all.layer->query_heads * all.layer->key_dim;
  some.first_query_attention += skipped;
  some.first_query_logical += skipped;
  some.queries = queries;
  // The last ones are counted.
  some.counted_queries =
      std::clamp<std::int64_t>(skipped + queries - (all.queries - all.counted_queries), 0, queries);
  return some;
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

// What chooses for a part: its last queries.
AttentionInput Recall::Voters(const LayerStep& step, const Part& part) const {
  const std::int64_t voters = VotersOf(part);
  AttentionInput input = SomeQueries(step.tasks[static_cast<std::size_t>(part.group)].input,
                                     part.first_query + part.queries - voters, voters);
  input.counted_queries = voters;
  input.first_kv_head += part.head;
  input.kv_heads = 1;
  return input;
}

// The blocks that are worth a look at their keys, in stream order: all, if they are few; else by
// their sketches.
void Recall::FindCandidates(const LayerStep& step, Part* part) const {
  const auto stored = store_.in_order(part->lane);
  const std::int64_t by_blocks = config_.blocks * kCandidatesPerBlock;
  if (std::ssize(stored) <= std::max(by_blocks, kFewStored)) {
    part->candidates.assign(stored.begin(), stored.end());
    return;
  }
  const std::int64_t wanted =
      std::max(by_blocks, in_prompt_ ? kFewestCandidates : kFewestOfAnswers);
  const AttentionInput input = Voters(step, *part);
  const auto slots = store_.slots(part->lane);
  part->mass.resize(slots.size());
  EstimateMass({.layer = input.layer,
                .kv_head = input.first_kv_head,
                .q = input.q,
                .queries = input.queries,
                .rotation = step.rotation,
                .shift_blocks = FarShift(step, part->group) / block_size_,
                .distance = input.first_query_attention.value,
                .block_size = block_size_,
                .sketches = store_.sketches(part->lane),
                .slots = slots},
               part->mass);
  KeepLargest(stored, part->mass, wanted, &part->ranked, &part->candidates);
}

// A part's resident blocks where they are, and its candidates at the far end; in stream order.
void Recall::PlaceCandidates(const LayerStep& step, Part* part) const {
  const auto slots = store_.slots(part->lane);
  const auto resident = step.tasks[static_cast<std::size_t>(part->group)].input.blocks;
  part->blocks.clear();
  part->placements.clear();
  std::size_t next = 0;
  const auto add_resident = [&](Position before) {
    for (; next < resident.size() && resident[next].logical < before; ++next) {
      part->placements.push_back({.index = static_cast<std::int64_t>(next)});
      part->blocks.push_back(resident[next]);
      part->blocks.back().first_head = part->head;
    }
  };
  for (std::size_t i = 0; i < part->candidates.size(); ++i) {
    const StoredBlock& stored = slots[static_cast<std::size_t>(part->candidates[i])];
    add_resident(stored.logical);
    BlockPlacement place = step.tables->CandidatePlacement(
        step.first_group + part->group, {.written = stored.written, .logical = stored.logical});
    place.index = static_cast<std::int64_t>(i);
    if (step.rotation == nullptr) place.shift = 0;
    part->placements.push_back(place);
    part->blocks.push_back(StoredAt(*part, part->candidates[i], place));
  }
  add_resident(resident.back().logical + 1);
}

// Leaves in each part that chooses its candidates with the mass that they and the resident blocks
// would get from its voters.
void Recall::WeighCandidates(const LayerStep& step) {
  for (std::int64_t group = 0; group < std::ssize(step.groups); ++group) {
    const std::int64_t shift = FarShift(step, group);
    if (step.rotation != nullptr) step.rotation->Extend(std::abs(shift) / block_size_);
  }
  ParallelFor(std::ssize(parts()), [&](std::int64_t i) {
    Part& part = parts()[static_cast<std::size_t>(i)];
    part.blocks.clear();
    if (!part.chooses) return;
    FindCandidates(step, &part);
    PlaceCandidates(step, &part);
  });
  Extend(step.rotation);
  tasks_.clear();
  for (Part& part : parts()) {
    if (!part.chooses) continue;
    AttentionInput input = Voters(step, part);
    input.blocks = part.blocks;
    part.mass.resize(part.blocks.size() * static_cast<std::size_t>(block_size_));
    tasks_.push_back({.input = input, .output = {.out = nullptr, .token_mass = part.mass}});
  }
  step.attention->Run(tasks_);
}

// Of the candidates, those that got most mass.
void Recall::KeepHeaviest(const LayerStep& step, const Part& part) {
  weighed_.clear();
  for (std::size_t i = 0; i < part.blocks.size(); ++i) {
    if (!part.placements[i].recalled) continue;
    float mass = 0.0F;
    for (std::int64_t t = 0; t < block_size_; ++t)
      mass += part.mass[i * static_cast<std::size_t>(block_size_) + static_cast<std::size_t>(t)];
    weighed_.push_back(
        {mass,
         {.slot = part.candidates[static_cast<std::size_t>(part.placements[i].index)],
          .logical = part.blocks[i].logical}});
  }
  const auto wanted = std::min<std::ptrdiff_t>(config_.blocks, std::ssize(weighed_));
  std::partial_sort(weighed_.begin(), weighed_.begin() + wanted, weighed_.end(),
                    [](const Weighed& left, const Weighed& right) {
                      return left.mass != right.mass ? left.mass > right.mass
                                                     : left.choice.logical > right.choice.logical;
                    });
  const std::span<const Weighed> kept = std::span(weighed_).first(static_cast<std::size_t>(wanted));
  NoteGain(step, part, kept);
  auto& choice = lanes_[static_cast<std::size_t>(part.lane)].choice;
  choice.clear();
  for (const Weighed& block : kept) choice.push_back(block.choice);
  std::sort(choice.begin(), choice.end(),
            [](const Choice& left, const Choice& right) { return left.logical < right.logical; });
}

// Tells the cadence what the choice of `kept` gains over the lane's former one.
void Recall::NoteGain(const LayerStep& step, const Part& part, std::span<const Weighed> kept) {
  Lane& lane = lanes_[static_cast<std::size_t>(part.lane)];
  const auto former = [&](const Weighed& block) {
    return std::any_of(lane.choice.begin(), lane.choice.end(), [&](const Choice& choice) {
      return choice.logical == block.choice.logical;
    });
  };
  double gain = 0.0;
  for (const Weighed& block : kept) gain += static_cast<double>(block.mass);
  for (const Weighed& block : weighed_) {
    if (former(block)) gain -= static_cast<double>(block.mass);
  }
  const AttentionLayerSpec& layer = *step.tasks.front().input.layer;
  // No former choice was better, but sums in another order may say so.
  gain = std::max(0.0, gain) /
         static_cast<double>(VotersOf(part) * (layer.query_heads / layer.kv_heads));
  if (!in_prompt_) return lane.cadence.NoteAnswer(config_, gain);
  // What the first choice of a step gains over one from before the last eviction says little.
  if (part.first_query > 0) lane.cadence.NotePrompt(gain);
}

// The blocks of a part's task: what is resident and what it has chosen and still can have.
void Recall::MergeChoice(const LayerStep& step, Part* part) const {
  const auto slots = store_.slots(part->lane);
  const auto resident = step.tasks[static_cast<std::size_t>(part->group)].input.blocks;
  part->recalled.clear();
  part->slots.clear();
  for (const Choice& choice : lanes_[static_cast<std::size_t>(part->lane)].choice) {
    const StoredBlock& stored = slots[static_cast<std::size_t>(choice.slot)];
    if (!stored.present() || stored.logical != choice.logical) continue;
    part->recalled.push_back({.written = stored.written, .logical = stored.logical});
    part->slots.push_back(choice.slot);
  }
  step.tables->Merge(step.first_group + part->group, part->recalled, &part->placements);
  part->blocks.clear();
  for (BlockPlacement& place : part->placements) {
    if (step.rotation == nullptr) place.shift = 0;
    if (place.recalled) {
      part->blocks.push_back(
          StoredAt(*part, part->slots[static_cast<std::size_t>(place.index)], place));
      continue;
    }
    part->blocks.push_back(resident[static_cast<std::size_t>(place.index)]);
    part->blocks.back().first_head = part->head;
    part->blocks.back().attention = place.attention;
    part->blocks.back().shift_blocks = place.shift / block_size_;
  }
}

// A part's queries over its blocks.
AttentionTask Recall::TaskOf(const LayerStep& step, Part* part) const {
  const AttentionTask& whole = step.tasks[static_cast<std::size_t>(part->group)];
  AttentionInput input = SomeQueries(whole.input, part->first_query, part->queries);
  input.first_kv_head += part->head;
  input.kv_heads = 1;
  input.blocks = part->blocks;
  input.first_query_attention = step.tables->NextAttentionPosition(step.first_group + part->group,
                                                                   std::ssize(part->recalled)) +
                                (part->first_query - whole.input.queries);
  part->mass.resize(
      input.counted_queries > 0 ? part->blocks.size() * static_cast<std::size_t>(block_size_) : 0);
  float* out =
      whole.output.out + part->first_query * input.layer->query_heads * input.layer->value_dim;
  return {.input = input, .output = {.out = out, .token_mass = part->mass}};
}

std::span<const AttentionTask> Recall::Widen(const LayerStep& step) {
  tasks_.clear();
  if (!HasStored(step)) return tasks_;
  const auto begin = Clock::now();
  ListParts(step);
  const bool any =
      std::any_of(parts().begin(), parts().end(), [](const Part& part) { return part.chooses; });
  if (any) WeighCandidates(step);
  // The parts of a KV head follow one another, and each has the choice that was made last.
  for (Part& part : parts()) {
    if (part.chooses) KeepHeaviest(step, part);
    MergeChoice(step, &part);
  }
  Extend(step.rotation);
  tasks_.clear();
  for (Part& part : parts()) tasks_.push_back(TaskOf(step, &part));
  seconds_ += SecondsSince(begin);
  return tasks_;
}

void Recall::ShareMass(const LayerStep& step) {
  for (const AttentionTask& task : step.tasks) {
    std::fill(task.output.token_mass.begin(), task.output.token_mass.end(), 0.0F);
  }
  for (const Part& part : parts()) {
    if (part.mass.empty()) continue;
    const std::span<float> to = step.tasks[static_cast<std::size_t>(part.group)].output.token_mass;
    for (std::size_t i = 0; i < part.placements.size(); ++i) {
      const BlockPlacement& place = part.placements[i];
      if (place.recalled) continue;
      const float* from = part.mass.data() + i * static_cast<std::size_t>(block_size_);
      float* slots = to.data() + place.index * block_size_;
      for (std::int64_t t = 0; t < block_size_; ++t) slots[t] += from[t];
    }
  }
  if (step.weighs && config_.promotion > 0.0) NoteGiven(step);
}

void Recall::NoteGiven(const LayerStep& step) {
  for (const Part& part : parts()) {
    if (part.mass.empty()) continue;
    std::vector<double>& resident = given_[static_cast<std::size_t>(step.first_group + part.group)];
    resident.resize(
        step.tasks[static_cast<std::size_t>(part.group)].input.blocks.size());  // some are new
    for (std::size_t i = 0; i < part.placements.size(); ++i) {
      const auto from = part.mass.begin() + static_cast<std::ptrdiff_t>(i) * block_size_;
      const double mass = std::accumulate(from, from + block_size_, 0.0);
      const BlockPlacement& place = part.placements[i];
      if (!place.recalled) {
        resident[static_cast<std::size_t>(place.index)] += mass;
        continue;
      }
      AddMass(part.recalled[static_cast<std::size_t>(place.index)].logical, mass,
              &lanes_[static_cast<std::size_t>(part.lane)].given);
    }
  }
}

std::int64_t Recall::recalled_blocks() const {
  std::int64_t blocks = 0;
  for (const Lane& lane : lanes_) blocks += std::ssize(lane.choice);
  return blocks;
}

}  // namespace carousel
