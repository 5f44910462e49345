// SPDX-License-Identifier: Apache-2.0
// Which blocks go: areas first, then the lowest scores among what may go.
#pragma once

#include <cstdint>
#include <functional>
#include <span>
#include <vector>

#include "cache/block_table.h"
#include "carousel/config.h"
#include "carousel/types.h"

namespace carousel {

// Entries [first, last) of a table may be evicted: full blocks after the start area (the stream's
// first start_size tokens) and before the recent area (the last recent_size kept tokens).
struct EvictableRange {
  std::int64_t first = 0;
  std::int64_t last = 0;
  std::int64_t blocks() const { return last - first; }
};

EvictableRange FindEvictable(std::span<const TableEntry> entries, std::int64_t block_size,
                             std::int64_t start_size, std::int64_t recent_size);

// How many blocks must go so that `resident_tokens` fits `max_tokens`. 0 when it fits.
std::int64_t BlocksOverLimit(std::int64_t resident_tokens, std::int64_t max_tokens,
                             std::int64_t block_size);

// The `count` entries of the range with the lowest score (all of them when there are fewer), as
// ascending indices. Of equal scores the older goes.
std::vector<std::int64_t> LowestScores(EvictableRange range, std::int64_t count,
                                       const std::function<double(std::int64_t entry)>& score);

// Blocks of a sliding-window layer that no later query can see: all their tokens are `window` or
// more behind the next token. They go without a score and without a loss, from any area. Ascending
// indices.
std::vector<std::int64_t> PastWindow(std::span<const TableEntry> entries, std::int64_t block_size,
                                     std::int64_t window, Position next_logical);

}  // namespace carousel
