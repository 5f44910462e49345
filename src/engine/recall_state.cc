// SPDX-License-Identifier: Apache-2.0
#include "engine/recall_state.h"

#include <algorithm>
#include <new>
#include <span>

#include "attention/recall_sketch.h"
#include "base/clock.h"

namespace carousel {
RecallState::RecallState(const EngineSettings& settings,
                         const std::vector<AttentionLayerSpec>& layers, TierPools* pools)
    : config_(settings.config.recall),
      block_size_(settings.config.cache.block_size),
      keeps_positions_(settings.rules.policy == PositionPolicy::kKeep),
      store_(pools),
      lanes_(settings.recall_lanes.size()),
      given_(settings.groups.size()) {
  std::int64_t lane = 0;
  for (const AttentionLayerSpec& layer : layers) {
    const bool recalls = carousel::Recalls(layer);
    first_lane_.push_back(recalls ? lane : -1);
    if (recalls) lane += layer.kv_heads;
  }
}

void RecallState::CopyFrom(const RecallState& from) {
  store_.CopyFrom(from.store_);
  for (std::size_t lane = 0; lane < lanes_.size(); ++lane)
    lanes_[lane].value = from.lanes_[lane].value;
  for (std::size_t group = 0; group < given_.size(); ++group)
    given_[group].value = from.given_[group].value;
}

EarnedMass RecallState::Earned(std::int64_t group_index, const CacheGroup& group) const {
  EarnedMass earned{.resident = given_[static_cast<std::size_t>(group_index)].value,
                    .recalled = {},
                    .blocks = {},
                    .factor = config_.promotion};
  if (config_.promotion == 0.0 || earned.resident.empty()) return earned;
  const std::int64_t first = FirstLane(group);
  const std::int64_t last = first + group.kv_heads;
  // All its KV heads together.
  for (std::int64_t lane = first; lane < last; ++lane) {
    for (const GivenMass& block : lanes_[static_cast<std::size_t>(lane)].value.given)
      AddMass(block.logical, block.mass, &earned.recalled);
  }
  std::erase_if(earned.recalled, [&](const GivenMass& block) {
    for (std::int64_t lane = first; lane < last; ++lane) {
      if (store_.Find(lane, block.logical) < 0) return true;  // dropped for want of room
    }
    return false;
  });
  for (const GivenMass& block : earned.recalled) {
    const auto slot = static_cast<std::size_t>(store_.Find(first, block.logical));
    earned.blocks.push_back(
        {.written = store_.slots(first)[slot].written, .logical = block.logical});
  }
  return earned;
}

void RecallState::ForgetGiven(std::int64_t group_index, const CacheGroup& group) {
  given_[static_cast<std::size_t>(group_index)].value.clear();
  const std::int64_t first = FirstLane(group);
  for (std::int64_t lane = first; lane < first + group.kv_heads; ++lane)
    lanes_[static_cast<std::size_t>(lane)].value.given.clear();
}

void RecallState::Store(const CacheGroup& group, const TableEntry& entry, const std::byte* data,
                        const BlockShape& shape, RotationTable* rotation) noexcept {
  if (!Recalls(group)) return;
  const auto begin = Clock::now();
  if (keeps_positions_) rotation = nullptr;
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

void RecallState::Read(const CacheGroup& group, Position logical, const BlockShape& shape,
                       std::byte* to) {
  for (std::int64_t head = 0; head < group.kv_heads; ++head) {
    const std::int64_t lane = FirstLane(group) + head;
    store_.Read(lane, store_.Find(lane, logical), shape, head, to);
  }
}

void RecallState::Remove(const CacheGroup& group, Position logical) {
  const std::int64_t first = FirstLane(group);
  for (std::int64_t lane = first; lane < first + group.kv_heads; ++lane) {
    const std::int64_t slot = store_.Find(lane, logical);
    if (slot >= 0) store_.Remove(lane, slot);
  }
}

void RecallState::Clear() {
  store_.Clear();
  Abandon();
  for (auto& lane : lanes_) lane.value = {};
  for (auto& given : given_) given.value.clear();
}

RecallLaneState& RecallState::Change(std::int64_t lane) {
  return lanes_[static_cast<std::size_t>(lane)].Change(stage_);
}

std::vector<double>& RecallState::ChangeGiven(std::int64_t group_index) {
  return given_[static_cast<std::size_t>(group_index)].Change(stage_);
}

void RecallState::Commit(std::int64_t stages) {
  const auto committed = static_cast<std::size_t>(stages);
  for (auto& lane : lanes_) lane.Commit(committed);
  for (auto& given : given_) given.Commit(committed);
}

void RecallState::Abandon() {
  for (auto& lane : lanes_) lane.stages = 0;
  for (auto& given : given_) given.stages = 0;
}

std::int64_t RecallState::SlotOf(std::int64_t lane, const RecallChoice& choice) const {
  const StoredBlock& before = store_.slots(lane)[static_cast<std::size_t>(choice.slot)];
  if (before.present() && before.logical == choice.logical) return choice.slot;
  return store_.Find(lane, choice.logical);
}

std::int64_t RecallState::recalled_blocks() const {
  std::int64_t blocks = 0;
  for (std::size_t lane = 0; lane < lanes_.size(); ++lane) {
    for (const RecallChoice& choice : lanes_[lane].value.choice)
      if (SlotOf(static_cast<std::int64_t>(lane), choice) >= 0) ++blocks;
  }
  return blocks;
}

}  // namespace carousel
