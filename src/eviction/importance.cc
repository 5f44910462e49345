// SPDX-License-Identifier: Apache-2.0
#include "eviction/importance.h"

#include <algorithm>
#include <limits>

#include "base/check.h"
#include "eviction/policy.h"

namespace carousel {

std::int64_t SnapKvQueries(const EvictionConfig& config, std::int64_t tokens,
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

ImportanceOptions SnapKvImportance(const EvictionConfig& config) {
  return {.aggregation = config.aggregation,
          .pooling_width = config.snapkv_window == 0 ? 1 : config.pooling_width};
}

void ImportanceTracker::Record(std::span<const TableEntry> entries,
                               std::span<const float> token_mass, std::int64_t counted_queries) {
  const auto block_size = static_cast<std::size_t>(block_size_);
  blocks_.resize(entries.size());
  token_mass_.resize(entries.size() * block_size);
  if (counted_queries == 0 || entries.empty()) return;
  CAROUSEL_CHECK_EQ(token_mass.size(), token_mass_.size());
  // All blocks but the last are full, so the filled slots are the first ones.
  const auto tokens =
      (entries.size() - 1) * block_size + static_cast<std::size_t>(entries.back().tokens);
  std::span<const float> votes = token_mass.first(tokens);
  if (options_.pooling_width > 1) {
    pooled_.resize(tokens);
    MaxPool(votes, options_.pooling_width, pooled_);
    votes = pooled_;
  }
  for (std::size_t i = 0; i < entries.size(); ++i) {
    const std::size_t end = i * block_size + static_cast<std::size_t>(entries[i].tokens);
    for (std::size_t token = i * block_size; token < end; ++token) {
      token_mass_[token] += static_cast<double>(votes[token]);
      blocks_[i].mass += static_cast<double>(votes[token]);
    }
    blocks_[i].lifetime += counted_queries;
  }
}

void ImportanceTracker::Erase(std::span<const std::int64_t> entries) {
  EraseEntries(entries, 1, &blocks_);
  EraseEntries(entries, block_size_, &token_mass_);
}

void ImportanceTracker::Insert(std::int64_t entry) {
  InsertEntry(entry, 1, &blocks_);
  InsertEntry(entry, block_size_, &token_mass_);
}

void ImportanceTracker::Clear() {
  blocks_.clear();
  token_mass_.clear();
}

double ImportanceTracker::Aggregated(double mass, std::int64_t lifetime) const {
  if (lifetime == 0) return std::numeric_limits<double>::infinity();
  return options_.aggregation == Aggregation::kSum ? mass : mass / static_cast<double>(lifetime);
}

double ImportanceTracker::Score(std::int64_t entry) const {
  return Aggregated(block(entry).mass, block(entry).lifetime);
}

double ImportanceTracker::TokenScore(std::int64_t entry, std::int64_t slot) const {
  return Aggregated(token_mass_[static_cast<std::size_t>(entry * block_size_ + slot)],
                    block(entry).lifetime);
}

std::int64_t ImportanceTracker::bytes() const {
  return static_cast<std::int64_t>(blocks_.size() * sizeof(BlockImportance) +
                                   token_mass_.size() * sizeof(double) +
                                   pooled_.size() * sizeof(float));
}

}  // namespace carousel
