// SPDX-License-Identifier: Apache-2.0
#include "eviction/importance.h"

#include <algorithm>
#include <limits>

#include "base/check.h"

namespace carousel {

std::int64_t CountedQueries(const EvictionConfig& config, std::int64_t tokens,
                            std::int64_t prompt_left) {
  if (config.snapkv_window == 0) return tokens;
  if (config.prompt_eviction == PromptEviction::kCapped)
    return std::min(tokens, config.snapkv_window);
  // The window reaches `snapkv_window` tokens back from the prompt's end, which is `prompt_left`
  // tokens ahead.
  return std::clamp<std::int64_t>(config.snapkv_window - prompt_left, 0, tokens);
}

void MaxPool(std::span<const float> from, std::int64_t width, std::span<float> to) {
  CAROUSEL_CHECK_EQ(from.size(), to.size());
  const std::int64_t reach = width / 2;
  const auto count = static_cast<std::int64_t>(from.size());
  for (std::int64_t i = 0; i < count; ++i) {
    const std::int64_t begin = std::max<std::int64_t>(0, i - reach);
    const std::int64_t end = std::min(count, i + reach + 1);
    to[static_cast<std::size_t>(i)] = *std::max_element(from.begin() + begin, from.begin() + end);
  }
}

ImportanceTracker::ImportanceTracker(const EvictionConfig& config)
    : aggregation_(config.aggregation),
      pooling_width_(config.snapkv_window == 0 ? 1 : config.pooling_width) {}

void ImportanceTracker::Record(std::span<const TableEntry> entries, std::int64_t block_size,
                               std::span<const float> token_mass, std::int64_t counted_queries) {
  Resize(static_cast<std::int64_t>(entries.size()));
  if (counted_queries == 0 || entries.empty()) return;
  CAROUSEL_CHECK_EQ(token_mass.size(), entries.size() * static_cast<std::size_t>(block_size));
  // All blocks but the last are full, so the filled slots are the first ones.
  const auto tokens = (entries.size() - 1) * static_cast<std::size_t>(block_size) +
                      static_cast<std::size_t>(entries.back().tokens);
  std::span<const float> votes = token_mass.first(tokens);
  if (pooling_width_ > 1) {
    pooled_.resize(tokens);
    MaxPool(votes, pooling_width_, pooled_);
    votes = pooled_;
  }
  for (std::size_t i = 0; i < entries.size(); ++i) {
    const auto begin = votes.begin() + static_cast<std::ptrdiff_t>(i) * block_size;
    for (auto vote = begin; vote != begin + entries[i].tokens; ++vote) {
      blocks_[i].mass += static_cast<double>(*vote);
    }
    blocks_[i].lifetime += counted_queries;
  }
}

void ImportanceTracker::Erase(std::span<const std::int64_t> entries) {
  std::size_t next_victim = 0;
  std::size_t kept = 0;
  for (std::size_t i = 0; i < blocks_.size(); ++i) {
    if (next_victim < entries.size() && static_cast<std::size_t>(entries[next_victim]) == i) {
      ++next_victim;
    } else {
      blocks_[kept++] = blocks_[i];
    }
  }
  CAROUSEL_CHECK_EQ(next_victim, entries.size());
  blocks_.resize(kept);
}

double ImportanceTracker::Score(std::int64_t entry) const {
  const BlockImportance& importance = block(entry);
  if (importance.lifetime == 0) return std::numeric_limits<double>::infinity();
  if (aggregation_ == Aggregation::kSum) return importance.mass;
  return importance.mass / static_cast<double>(importance.lifetime);
}

}  // namespace carousel
