// SPDX-License-Identifier: Apache-2.0
// Which blocks may go, and how many must.
#pragma once

#include <cstdint>
#include <set>
#include <span>
#include <vector>

#include "cache/block_table.h"
#include "carousel/types.h"

namespace carousel {

// The areas that are never evicted, in tokens.
struct Areas {
  std::int64_t start_size = 0;   // of the stream's first tokens
  std::int64_t recent_size = 0;  // of the last kept ones
};

// Who may go, as ascending indices: full blocks after the start area and before the recent area
// whose number in the stream (logical / block_size) is not among the pinned.
std::vector<std::int64_t> FindCandidates(std::span<const TableEntry> entries,
                                         std::int64_t block_size, const Areas& areas,
                                         const std::set<std::int64_t>& pinned);

// How many blocks must go so that `resident_tokens` fits `max_tokens`; below 0: how many more would
// fit.
std::int64_t BlocksOverLimit(std::int64_t resident_tokens, std::int64_t max_tokens,
                             std::int64_t block_size);

// Blocks of a sliding-window layer that no later query can see: all their tokens are `window` or
// more behind the next token. They go without a score and without a loss, from any area. Ascending
// indices.
std::vector<std::int64_t> PastWindow(std::span<const TableEntry> entries, std::int64_t block_size,
                                     std::int64_t window, Position next_logical);

}  // namespace carousel
