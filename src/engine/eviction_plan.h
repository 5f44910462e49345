// SPDX-License-Identifier: Apache-2.0
// Who leaves a cache group and who comes back to it, before a step.
#pragma once

#include <cstdint>
#include <span>
#include <vector>

#include "cache/block_table.h"
#include "engine/promotion.h"

namespace carousel {

// Decided by looking alone; nothing has changed yet.
struct EvictionPlan {
  std::vector<std::int64_t> leaves;    // entries of the group's table, ascending
  std::vector<RecalledBlock> returns;  // recalled blocks that have earned places; fewer than leave
};

// What is known of a group's recalled blocks when some of its resident ones are to go.
struct EarnedMass {
  std::span<const double> resident;   // [entries that a counted query has seen]
  std::vector<GivenMass> recalled;    // in stream order
  std::vector<RecalledBlock> blocks;  // [recalled]
  double factor = 0.0;                // RecallConfig::promotion
};

// `victims` must go, of `candidates` that may (both ascending entries of `entries`). Recalled
// blocks that were given more than other candidates take their places, so these leave as well.
EvictionPlan PlanExchange(std::span<const TableEntry> entries,
                          std::span<const std::int64_t> candidates,
                          std::span<const std::int64_t> victims, const EarnedMass& earned);

}  // namespace carousel
