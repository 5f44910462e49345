// SPDX-License-Identifier: Apache-2.0
#include "engine/eviction_plan.h"

#include <algorithm>

namespace carousel {

EvictionPlan PlanExchange(std::span<const TableEntry> entries,
                          std::span<const std::int64_t> candidates,
                          std::span<const std::int64_t> victims, const EarnedMass& earned) {
  EvictionPlan plan{.leaves = {victims.begin(), victims.end()}, .returns = {}};
  if (victims.empty() || earned.recalled.empty()) return plan;
  std::vector<std::int64_t> others;
  std::vector<GivenMass> resident;  // [others]
  for (const std::int64_t entry : candidates) {
    if (entry >= std::ssize(earned.resident)) break;  // no query that counts has seen it
    if (std::binary_search(victims.begin(), victims.end(), entry)) continue;
    const auto index = static_cast<std::size_t>(entry);
    others.push_back(entry);
    resident.push_back({.logical = entries[index].logical, .mass = earned.resident[index]});
  }
  for (const Exchange& exchange : EarnedPlaces(resident, earned.recalled, earned.factor)) {
    plan.leaves.push_back(others[exchange.resident]);
    plan.returns.push_back(earned.blocks[exchange.recalled]);
  }
  std::sort(plan.leaves.begin(), plan.leaves.end());
  return plan;
}

}  // namespace carousel
