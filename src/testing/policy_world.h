// SPDX-License-Identifier: Apache-2.0
// One cache group in which everything is remembered by stream token, so that a policy can be held
// against its paper's rule written out plainly.
#pragma once

#include <algorithm>
#include <cstdint>
#include <random>
#include <vector>

#include "eviction/policy.h"

namespace carousel {

struct WorldShape {
  std::int64_t block_size = 8;
  std::int64_t kv_heads = 2;
  std::int64_t query_heads = 4;
  std::int64_t key_dim = 8;
  std::int64_t value_dim = 4;
};

// What one step did, by stream token.
struct WorldStep {
  std::int64_t counted = 0;
  std::vector<std::int64_t> tokens;  // that were there, in order
  std::vector<float> mass;           // of each
};

class PolicyWorld final : public BlockReader {
 public:
  PolicyWorld(const WorldShape& shape, std::uint64_t seed) : shape_(shape), generator_(seed) {}

  const WorldShape& shape() const { return shape_; }
  BlockShape block_shape() const {
    return {.block_size = shape_.block_size,
            .kv_heads = shape_.kv_heads,
            .key_dim = shape_.key_dim,
            .value_dim = shape_.value_dim};
  }
  const std::vector<TableEntry>& entries() const { return entries_; }
  const std::vector<WorldStep>& steps() const { return steps_; }
  // Of a stream token, [kv_heads, key_dim] as written and [kv_heads, value_dim].
  const std::vector<float>& key(std::int64_t token) const {
    return keys_[static_cast<std::size_t>(token)];
  }
  const std::vector<float>& value(std::int64_t token) const {
    return values_[static_cast<std::size_t>(token)];
  }
  const std::vector<float>& query(std::int64_t token) const {  // [query_heads, key_dim]
    return queries_[static_cast<std::size_t>(token)];
  }
  std::int64_t length() const { return static_cast<std::int64_t>(keys_.size()); }
  std::int64_t Pick(std::int64_t least, std::int64_t most) {  // both included
    return least +
           static_cast<std::int64_t>(generator_() % static_cast<std::uint64_t>(most - least + 1));
  }

  // Appends tokens and shows the step to the policy.
  void Step(std::int64_t tokens, std::int64_t prompt_left, Policy* policy);
  // Full blocks between `start` tokens of the stream and the last `recent` entries.
  std::vector<std::int64_t> Candidates(std::int64_t start, std::int64_t recent) const;
  GroupView View(const std::vector<std::int64_t>& candidates);
  void Evict(const std::vector<std::int64_t>& entries, Policy* policy);

  void ReadKeys(std::int64_t entry, std::int64_t head, float* to) const override;
  void ReadValues(std::int64_t entry, std::int64_t head, float* to) const override;

 private:
  std::vector<float> Normal(std::int64_t count) {
    std::normal_distribution<float> normal;
    std::vector<float> numbers(static_cast<std::size_t>(count));
    for (float& number : numbers) number = normal(generator_);
    return numbers;
  }

  WorldShape shape_;
  std::mt19937_64 generator_;
  std::vector<TableEntry> entries_;
  std::vector<Position> attention_;
  std::vector<WorldStep> steps_;
  std::vector<std::vector<float>> keys_, values_, queries_;  // by stream token
};

inline void PolicyWorld::Step(std::int64_t tokens, std::int64_t prompt_left, Policy* policy) {
  const std::int64_t first = length();
  for (std::int64_t i = 0; i < tokens; ++i) {
    if (length() % shape_.block_size == 0) {
      entries_.push_back(
          {.block = {}, .written = Position{length()}, .logical = Position{length()}});
    }
    ++entries_.back().tokens;
    keys_.push_back(Normal(shape_.kv_heads * shape_.key_dim));
    values_.push_back(Normal(shape_.kv_heads * shape_.value_dim));
    queries_.push_back(Normal(shape_.query_heads * shape_.key_dim));
  }
  WorldStep step{.counted = policy->CountedQueries({.tokens = tokens, .prompt_left = prompt_left})};
  std::vector<float> slots;
  for (const TableEntry& entry : entries_) {
    for (std::int64_t slot = 0; slot < shape_.block_size; ++slot) {
      const bool filled = slot < entry.tokens;
      // Multiples of 1 / 64: sums of them are exact, and equal ones happen.
      const float mass = filled ? static_cast<float>(Pick(0, 64)) / 64.0F : 0.0F;
      slots.push_back(mass);
      if (!filled) continue;
      step.tokens.push_back(entry.logical.value + slot);
      step.mass.push_back(mass);
    }
  }
  if (step.counted == 0) slots.clear();
  std::vector<float> q, k, v;
  for (std::int64_t token = first; token < length(); ++token) {
    q.insert(q.end(), query(token).begin(), query(token).end());
    k.insert(k.end(), key(token).begin(), key(token).end());
    v.insert(v.end(), value(token).begin(), value(token).end());
  }
  policy->Observe({.entries = entries_,
                   .counted_queries = step.counted,
                   .token_mass = slots,
                   .tokens = tokens,
                   .first_written = Position{first},
                   .first_logical = Position{first},
                   .q = q.data(),
                   .k = k.data(),
                   .v = v.data(),
                   .q_stride = shape_.query_heads * shape_.key_dim,
                   .k_stride = shape_.kv_heads * shape_.key_dim,
                   .v_stride = shape_.kv_heads * shape_.value_dim});
  steps_.push_back(std::move(step));
}

inline std::vector<std::int64_t> PolicyWorld::Candidates(std::int64_t start,
                                                         std::int64_t recent) const {
  std::vector<std::int64_t> candidates;
  for (std::int64_t i = 0; i + recent < static_cast<std::int64_t>(entries_.size()); ++i) {
    const TableEntry& entry = entries_[static_cast<std::size_t>(i)];
    if (entry.logical.value >= start && entry.tokens == shape_.block_size) candidates.push_back(i);
  }
  return candidates;
}

inline GroupView PolicyWorld::View(const std::vector<std::int64_t>& candidates) {
  attention_.clear();
  std::int64_t tokens = 0;
  for (const TableEntry& entry : entries_) {
    attention_.push_back(Position{tokens});
    tokens += entry.tokens;
  }
  return {.entries = entries_,
          .candidates = candidates,
          .attention = attention_,
          .next_attention = Position{tokens},
          .blocks = this};
}

inline void PolicyWorld::Evict(const std::vector<std::int64_t>& entries, Policy* policy) {
  EraseEntries(entries, 1, &entries_);
  policy->Erase(entries);
}

inline void PolicyWorld::ReadKeys(std::int64_t entry, std::int64_t head, float* to) const {
  for (std::int64_t slot = 0; slot < shape_.block_size; ++slot) {
    const TableEntry& block = entries_[static_cast<std::size_t>(entry)];
    for (std::int64_t dim = 0; dim < shape_.key_dim; ++dim) {
      to[dim * shape_.block_size + slot] =
          slot < block.tokens ? key(block.logical.value +
                                    slot)[static_cast<std::size_t>(head * shape_.key_dim + dim)]
                              : 0.0F;
    }
  }
}

inline void PolicyWorld::ReadValues(std::int64_t entry, std::int64_t head, float* to) const {
  for (std::int64_t slot = 0; slot < shape_.block_size; ++slot) {
    const TableEntry& block = entries_[static_cast<std::size_t>(entry)];
    for (std::int64_t dim = 0; dim < shape_.value_dim; ++dim) {
      to[slot * shape_.value_dim + dim] =
          slot < block.tokens ? value(block.logical.value +
                                      slot)[static_cast<std::size_t>(head * shape_.value_dim + dim)]
                              : 0.0F;
    }
  }
}

}  // namespace carousel
