// SPDX-License-Identifier: Apache-2.0
#include "engine/attention_record.h"

#include <numeric>

#include "base/check.h"
#include "eviction/policy.h"

namespace carousel {

void AttentionRecord::Record(std::span<const float> token_mass, std::int64_t counted_queries) {
  CAROUSEL_CHECK_EQ(std::ssize(token_mass) % block_size_, 0);
  CAROUSEL_CHECK_LE(token_mass_.size(), token_mass.size());
  token_mass_.resize(token_mass.size());
  queries_.resize(token_mass.size() / static_cast<std::size_t>(block_size_));
  for (std::size_t i = 0; i < token_mass.size(); ++i)
    token_mass_[i] += static_cast<double>(token_mass[i]);
  for (std::int64_t& queries : queries_) queries += counted_queries;
}

void AttentionRecord::Erase(std::span<const std::int64_t> entries) {
  for (auto entry = entries.rbegin(); entry != entries.rend(); ++entry) {
    if (*entry >= std::ssize(queries_)) continue;  // came after the last step that was recorded
    queries_.erase(queries_.begin() + *entry);
    const auto first = token_mass_.begin() + *entry * block_size_;
    token_mass_.erase(first, first + block_size_);
  }
}

void AttentionRecord::Insert(std::int64_t entry) {
  InsertEntry(entry, 1, &queries_);
  InsertEntry(entry, block_size_, &token_mass_);
}

void AttentionRecord::Clear() {
  token_mass_.clear();
  queries_.clear();
}

std::vector<BlockAttention> AttentionRecord::Of(std::span<const TableEntry> entries) const {
  std::vector<BlockAttention> blocks;
  for (std::size_t i = 0; i < entries.size(); ++i) {
    BlockAttention block{.first_token = entries[i].logical.value, .tokens = entries[i].tokens};
    block.token_mass.resize(static_cast<std::size_t>(block.tokens));
    if (i < queries_.size()) {
      const auto first = token_mass_.begin() + static_cast<std::int64_t>(i) * block_size_;
      block.token_mass.assign(first, first + block.tokens);
      block.counted_queries = queries_[i];
    }
    block.mass = std::accumulate(block.token_mass.begin(), block.token_mass.end(), 0.0);
    blocks.push_back(std::move(block));
  }
  return blocks;
}

}  // namespace carousel
