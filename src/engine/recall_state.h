// SPDX-License-Identifier: Apache-2.0
// What lasts of recall for one sequence: the blocks that it has lost, in the second tier, and what
// each KV head has chosen of them and given them.
//
// A step changes a copy of a head's state. Commit makes the copies the state; Abandon drops them.
#pragma once

#include <algorithm>
#include <cstdint>
#include <utility>
#include <vector>

#include "cache/block_table.h"
#include "cache/cache_group.h"
#include "cache/recall_store.h"
#include "cache/tier_pools.h"
#include "carousel/model.h"
#include "engine/eviction_plan.h"
#include "engine/promotion.h"
#include "engine/recall_cadence.h"
#include "engine/settings.h"
#include "rope/rotation_table.h"

namespace carousel {

// A block that a KV head has chosen.
struct RecallChoice {
  std::int64_t slot = 0;  // where it lay; it may have left, and may be back in another
  Position logical;
};

// Of one KV head that recalls.
struct RecallLaneState {
  RecallCadence cadence;
  std::vector<RecallChoice> choice;  // in stream order
  // Since the group last evicted: what recalled blocks were given.
  std::vector<GivenMass> given;
};

class RecallState {
 public:
  // `layers` and `pools` outlive it.
  RecallState(const EngineSettings& settings, const std::vector<AttentionLayerSpec>& layers,
              TierPools* pools);

  const RecallConfig& config() const { return config_; }
  const RecallStore& store() const { return store_; }
  // Whether tokens keep their positions, so that queries meet stored keys as they were written.
  bool keeps_positions() const { return keeps_positions_; }
  bool Recalls(const CacheGroup& group) const {
    return first_lane_[static_cast<std::size_t>(group.layer)] >= 0;
  }
  // Of the group's KV heads, which follow one another. The group recalls.
  std::int64_t FirstLane(const CacheGroup& group) const {
    return first_lane_[static_cast<std::size_t>(group.layer)] + group.first_kv_head;
  }

  // --- Between steps.

  // Becomes what another one of the same settings is; was empty. Throws as RecallStore::CopyFrom.
  void CopyFrom(const RecallState& from);
  // What the group's blocks have been given since it last evicted; recalled ones only where they
  // are still stored. Points into the state.
  EarnedMass Earned(std::int64_t group_index, const CacheGroup& group) const;
  // The group evicts: what was given is weighed from here anew.
  void ForgetGiven(std::int64_t group_index, const CacheGroup& group);
  // Where a block lies that a lane has chosen; -1: it is no longer stored.
  std::int64_t SlotOf(std::int64_t lane, const RecallChoice& choice) const;
  // Takes a copy of a full block that the group's table is about to lose, or drops it where there
  // is no room. Does not throw.
  void Store(const CacheGroup& group, const TableEntry& entry, const std::byte* data,
             const BlockShape& shape, RotationTable* rotation) noexcept;
  // Writes a stored block as one of the group's shape, at `to`.
  void Read(const CacheGroup& group, Position logical, const BlockShape& shape, std::byte* to);
  // Takes a block out of the second tier, if it is there.
  void Remove(const CacheGroup& group, Position logical);
  void Clear();

  // --- In a step, of one or more stages (step_plan.h). A layer's stages come in order; what one
  // changes the next finds changed.

  void BeginStage(std::int64_t stage) { stage_ = static_cast<std::size_t>(stage); }
  // The state of a lane as the step has left it so far, and to be changed.
  RecallLaneState& Change(std::int64_t lane);
  // What a group's resident blocks were given, [entries], likewise.
  std::vector<double>& ChangeGiven(std::int64_t group_index);
  // What the first `stages` stages have left becomes the state.
  void Commit(std::int64_t stages);
  void Abandon();

  std::int64_t recalled_blocks() const;        // now, over all layers and KV heads
  double seconds() const { return seconds_; }  // spent on storing and choosing
  void AddSeconds(double seconds) { seconds_ += seconds; }

 private:
  // A value and what each stage of a step makes of it.
  template <typename T>
  struct Changing {
    T value;
    std::vector<T> changed;  // by the first stages, and more, which keep their memory
    std::size_t stages = 0;  // so many of them

    T& Change(std::size_t stage) {
      if (changed.size() <= stage) changed.resize(stage + 1);
      for (; stages <= stage; ++stages) changed[stages] = stages == 0 ? value : changed[stages - 1];
      return changed[stage];
    }
    void Commit(std::size_t committed) {
      if (stages > 0) std::swap(value, changed[std::min(stages, committed) - 1]);
      stages = 0;
    }
  };

  RecallConfig config_;
  std::int64_t block_size_;
  bool keeps_positions_;
  std::vector<std::int64_t> first_lane_;  // [layers], of the layer's KV heads; -1: never recalls
  RecallStore store_;
  std::vector<Changing<RecallLaneState>> lanes_;
  // [groups, entries]: what resident blocks were given since the group last evicted.
  std::vector<Changing<std::vector<double>>> given_;
  std::size_t stage_ = 0;
  std::vector<float> sketches_;
  double seconds_ = 0.0;
};

}  // namespace carousel
