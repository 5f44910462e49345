// SPDX-License-Identifier: Apache-2.0
#include "eviction/policy.h"

#include <algorithm>
#include <numeric>

#include "base/check.h"

namespace carousel {

void Policy::ScoreTokens(const GroupView& view, std::span<double> scores) {
  std::vector<double> blocks(view.candidates.size());
  Score(view, blocks);
  const std::size_t block_size = blocks.empty() ? 0 : scores.size() / blocks.size();
  for (std::size_t i = 0; i < scores.size(); ++i) scores[i] = blocks[i / block_size];
}

std::vector<std::int64_t> Policy::Choose(const GroupView& view, std::int64_t count) {
  std::vector<double> scores(view.candidates.size());
  Score(view, scores);
  return LowestScores(view.candidates, scores, count);
}

std::vector<std::int64_t> LowestScores(std::span<const std::int64_t> candidates,
                                       std::span<const double> scores, std::int64_t count) {
  CAROUSEL_CHECK_EQ(candidates.size(), scores.size());
  CAROUSEL_CHECK(count >= 0 && count <= static_cast<std::int64_t>(candidates.size()));
  std::vector<std::size_t> order(candidates.size());
  std::iota(order.begin(), order.end(), 0);
  std::partial_sort(order.begin(), order.begin() + count, order.end(),
                    [&](std::size_t a, std::size_t b) {
                      return scores[a] < scores[b] || (scores[a] == scores[b] && a < b);
                    });
  std::vector<std::int64_t> entries;
  for (std::int64_t i = 0; i < count; ++i)
    entries.push_back(candidates[order[static_cast<std::size_t>(i)]]);
  std::sort(entries.begin(), entries.end());
  return entries;
}

}  // namespace carousel
