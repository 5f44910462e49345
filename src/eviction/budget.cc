// SPDX-License-Identifier: Apache-2.0
#include "eviction/budget.h"

#include <algorithm>
#include <cmath>
#include <tuple>

namespace carousel {
namespace {

std::int64_t EvictableBlocks(const EvictionConfig& eviction, std::int64_t size,
                             std::int64_t block_size) {
  return (size - eviction.start_size - eviction.recent_size) / block_size;
}

}  // namespace

std::vector<std::int64_t> LayerSizes(const EvictionConfig& eviction, std::int64_t layers,
                                     std::int64_t block_size) {
  if (!eviction.layer_max_cache_size.empty()) return eviction.layer_max_cache_size;
  std::vector<std::int64_t> sizes(static_cast<std::size_t>(layers), eviction.max_cache_size);
  if (eviction.budget != Budget::kPyramid || layers == 1) return sizes;
  const auto mean =
      static_cast<double>(EvictableBlocks(eviction, eviction.max_cache_size, block_size));
  const double least = std::max(1.0, mean / eviction.budget_slope);
  const double step = 2.0 * (mean - least) / static_cast<double>(layers - 1);
  // Sums are rounded, not sizes: then the total is exact, and no size falls below its floor.
  double sum = 0.0;
  std::int64_t given = 0;
  for (std::int64_t layer = 0; layer < layers; ++layer) {
    sum += 2.0 * mean - least - static_cast<double>(layer) * step;
    const auto blocks = static_cast<std::int64_t>(std::llround(sum)) - given;
    given += blocks;
    sizes[static_cast<std::size_t>(layer)] =
        eviction.start_size + eviction.recent_size + blocks * block_size;
  }
  return sizes;
}

std::int64_t LargestHeadSize(const EvictionConfig& eviction, std::int64_t layer_size,
                             std::int64_t heads, std::int64_t block_size) {
  if (eviction.budget != Budget::kAdaptive) return layer_size;
  // A share may be a block short while the recent area reaches into one more.
  const std::int64_t share = EvictableBlocks(eviction, layer_size, block_size) - 1;
  const auto kept = static_cast<std::int64_t>(eviction.budget_floor * static_cast<double>(share));
  const std::int64_t other = eviction.start_size + eviction.recent_size + kept * block_size;
  return layer_size + (heads - 1) * (layer_size - other);
}

std::vector<std::int64_t> AdaptiveLosses(std::span<const HeadCandidates> heads, std::int64_t losses,
                                         double floor) {
  struct Candidate {
    double score;
    std::int64_t logical;
    std::size_t head;
    auto operator<=>(const Candidate&) const = default;
  };
  std::vector<Candidate> candidates;
  for (std::size_t head = 0; head < heads.size(); ++head) {
    for (std::size_t i = 0; i < heads[head].scores.size(); ++i)
      candidates.push_back({heads[head].scores[i], heads[head].logical[i], head});
  }
  std::sort(candidates.begin(), candidates.end(), [](const Candidate& a, const Candidate& b) {
    return std::tie(a.score, a.logical, a.head) < std::tie(b.score, b.logical, b.head);
  });
  const auto stay = static_cast<double>(std::ssize(candidates) - losses);
  const auto kept =
      static_cast<std::int64_t>(floor * std::max(0.0, stay) / static_cast<double>(heads.size()));
  std::vector<std::int64_t> lost(heads.size(), 0);
  for (const Candidate& candidate : candidates) {
    if (losses == 0) break;
    std::int64_t& own = lost[candidate.head];
    if (std::ssize(heads[candidate.head].scores) - own <= kept) continue;
    ++own;
    --losses;
  }
  return lost;
}

}  // namespace carousel
