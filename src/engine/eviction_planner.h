// SPDX-License-Identifier: Apache-2.0
// Who is evicted: areas and pins say who may go, the budget how many of each group, the policy
// which.
#pragma once

#include <cstdint>
#include <memory>
#include <set>
#include <span>
#include <vector>

#include "cache/block_table.h"
#include "carousel/model.h"
#include "carousel/request.h"
#include "engine/block_access.h"
#include "engine/settings.h"
#include "eviction/plan.h"
#include "eviction/policy.h"

namespace carousel {

// Of one group: who may go, and who does. Ascending entries of its table.
struct Victims {
  std::vector<std::int64_t> candidates;  // empty where nothing had to be looked at
  std::vector<std::int64_t> entries;
};

// Of the cache groups of one sequence. Without eviction in the settings nothing ever goes.
class EvictionPlanner {
 public:
  EvictionPlanner(const EngineSettings& settings, const std::vector<AttentionLayerSpec>& layers);
  // Knows from now on what another one of the same settings knows.
  void CopyFrom(const EvictionPlanner& from);

  bool evicts() const { return !policies_.empty(); }
  // How many of the step's last queries all groups' policies want counted.
  std::int64_t CountedQueries(const PolicyStep& step) const;
  bool WantsVectors() const { return evicts() && policies_.front()->WantsVectors(); }
  void Observe(std::int64_t group, const Observation& observation) {
    policies_[static_cast<std::size_t>(group)]->Observe(observation);
  }

  // Who must go of the groups [first_group, first_group + readers.size()) of a layer, so that all
  // together hold `room_tokens` less than their limits; fewer where fewer may. Looks at nothing
  // where nothing is over its limit. Layers may be asked for at the same time.
  std::vector<Victims> Choose(const SequenceTables& tables, std::int64_t first_group,
                              std::span<const GroupReader> readers, std::int64_t room_tokens);
  // Whether Choose would look for somebody who must go of these `groups` groups of a layer.
  bool IsOver(const SequenceTables& tables, std::int64_t first_group, std::int64_t groups,
              std::int64_t room_tokens) const;
  void Erase(std::int64_t group, std::span<const std::int64_t> entries) {
    if (evicts()) policies_[static_cast<std::size_t>(group)]->Erase(entries);
  }

  void Insert(std::int64_t group, std::int64_t entry) {
    policies_[static_cast<std::size_t>(group)]->Insert(entry);
  }
  // Never evicts the blocks that hold tokens [begin, end) of the stream. Throws carousel::Error
  // when that would leave a group without a block to evict; nothing is pinned then.
  void Pin(std::span<const TokenSpan> spans);
  // Takes back what was pinned from `length` on: tokens that never came.
  void TrimPins(std::int64_t length);
  void Clear();

 private:
  // How many blocks the group must lose; negative: how many more it may hold.
  std::int64_t Loss(const SequenceTables& tables, std::int64_t group,
                    std::int64_t room_tokens) const;

  std::int64_t block_size_ = 0;
  Areas areas_;
  bool shared_by_heads_ = false;                   // Budget::kAdaptive
  double floor_ = 0.0;                             // of an adaptive budget
  std::vector<std::int64_t> limits_;               // [groups], tokens
  std::vector<std::unique_ptr<Policy>> policies_;  // [groups]; empty: nothing is evicted
  std::set<std::int64_t> pinned_;                  // blocks of the stream: logical / block_size
};

}  // namespace carousel
