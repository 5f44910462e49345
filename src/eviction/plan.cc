// SPDX-License-Identifier: Apache-2.0
#include "eviction/plan.h"

#include <algorithm>

namespace carousel {

EvictableRange FindEvictable(std::span<const TableEntry> entries, std::int64_t block_size,
                             std::int64_t start_size, std::int64_t recent_size) {
  EvictableRange range;
  const auto count = static_cast<std::int64_t>(entries.size());
  while (range.first < count &&
         entries[static_cast<std::size_t>(range.first)].logical.value < start_size) {
    ++range.first;
  }
  range.last = count;
  std::int64_t protected_tokens = 0;
  while (range.last > range.first &&
         (protected_tokens < recent_size ||
          entries[static_cast<std::size_t>(range.last - 1)].tokens < block_size)) {
    protected_tokens += entries[static_cast<std::size_t>(range.last - 1)].tokens;
    --range.last;
  }
  return range;
}

std::int64_t BlocksOverLimit(std::int64_t resident_tokens, std::int64_t max_tokens,
                             std::int64_t block_size) {
  const std::int64_t excess = resident_tokens - max_tokens;
  return excess <= 0 ? 0 : (excess + block_size - 1) / block_size;
}

std::vector<std::int64_t> LowestScores(EvictableRange range, std::int64_t count,
                                       const std::function<double(std::int64_t entry)>& score) {
  struct Candidate {
    double score;
    std::int64_t entry;
    auto operator<=>(const Candidate&) const = default;
  };
  std::vector<Candidate> candidates;
  for (std::int64_t entry = range.first; entry < range.last; ++entry) {
    candidates.push_back({score(entry), entry});
  }
  count = std::clamp<std::int64_t>(count, 0, static_cast<std::int64_t>(candidates.size()));
  std::partial_sort(candidates.begin(), candidates.begin() + count, candidates.end(),
                    [](const Candidate& a, const Candidate& b) { return a < b; });
  std::vector<std::int64_t> entries;
  for (std::int64_t i = 0; i < count; ++i)
    entries.push_back(candidates[static_cast<std::size_t>(i)].entry);
  std::sort(entries.begin(), entries.end());
  return entries;
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
