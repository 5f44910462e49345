// SPDX-License-Identifier: Apache-2.0
#include "eviction/plan.h"

namespace carousel {

std::vector<std::int64_t> FindCandidates(std::span<const TableEntry> entries,
                                         std::int64_t block_size, const Areas& areas,
                                         const std::set<std::int64_t>& pinned) {
  std::size_t last = entries.size();
  std::int64_t protected_tokens = 0;
  while (last > 0 &&
         (protected_tokens < areas.recent_size || entries[last - 1].tokens < block_size)) {
    protected_tokens += entries[--last].tokens;
  }
  std::vector<std::int64_t> candidates;
  for (std::size_t i = 0; i < last; ++i) {
    const std::int64_t logical = entries[i].logical.value;
    if (logical >= areas.start_size && !pinned.contains(logical / block_size))
      candidates.push_back(static_cast<std::int64_t>(i));
  }
  return candidates;
}

std::int64_t BlocksOverLimit(std::int64_t resident_tokens, std::int64_t max_tokens,
                             std::int64_t block_size) {
  const std::int64_t excess = resident_tokens - max_tokens;
  return excess > 0 ? (excess + block_size - 1) / block_size : -(-excess / block_size);
}

std::vector<std::int64_t> PastWindow(std::span<const TableEntry> entries, std::int64_t block_size,
                                     std::int64_t window, Position next_logical) {
  std::vector<std::int64_t> gone;
  for (std::size_t i = 0; i < entries.size(); ++i) {
    const Position last_token = entries[i].logical + (block_size - 1);
    if (entries[i].tokens == block_size && next_logical - last_token >= window) {
      gone.push_back(static_cast<std::int64_t>(i));
    }
  }
  return gone;
}

}  // namespace carousel
