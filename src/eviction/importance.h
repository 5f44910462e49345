// SPDX-License-Identifier: Apache-2.0
// How much each block of a table has mattered: attention mass, gathered step by step. What the
// policies that go by attention are built from.
#pragma once

#include <cstdint>
#include <span>
#include <vector>

#include "cache/block_table.h"
#include "carousel/enums.h"
#include "carousel/eviction_config.h"

namespace carousel {

// Which queries of a step vote in SnapKV. `prompt_left` is how many prompt tokens follow after this
// step's `tokens` (0 for the last chunk and for decode). Capped: the last `snapkv_window` of each
// step. At the end: only those among the prompt's last `snapkv_window`. Window 0: all. Always the
// step's last ones, so a count says it all.
std::int64_t SnapKvQueries(const EvictionConfig& config, std::int64_t tokens,
                           std::int64_t prompt_left);

// to[i] = max of from[i - width / 2, i + width / 2], cut at the ends. `width` is odd. No overlap.
void MaxPool(std::span<const float> from, std::int64_t width, std::span<float> to);

struct ImportanceOptions {
  Aggregation aggregation = Aggregation::kNormSum;
  std::int64_t pooling_width = 1;  // of MaxPool over each step's votes
};
// What SnapKV's settings come to.
ImportanceOptions SnapKvImportance(const EvictionConfig& config);

struct BlockImportance {
  double mass = 0.0;  // pooled attention mass, summed over tokens, heads and counted queries
  std::int64_t lifetime = 0;  // counted queries that could see the block
};

// One per block table; entry i here is entry i there. Scores last as long as their block.
class ImportanceTracker {
 public:
  // `block_size` is that of the table.
  ImportanceTracker(std::int64_t block_size, const ImportanceOptions& options)
      : block_size_(block_size), options_(options) {}

  // `token_mass` is [entries * block_size] as PagedAttention writes it, from `counted_queries`
  // queries; blocks that are new in `entries` start here.
  void Record(std::span<const TableEntry> entries, std::span<const float> token_mass,
              std::int64_t counted_queries);
  // Forgets the entries that were evicted; ascending indices.
  void Erase(std::span<const std::int64_t> entries);
  // A block that came back starts here.
  void Insert(std::int64_t entry);
  void Clear();

  // The eviction score: mass, or mass per counted query (norm_sum). A block that nobody has voted
  // on yet scores above all others: nothing is known against it.
  double Score(std::int64_t entry) const;
  // The same of one of its tokens.
  double TokenScore(std::int64_t entry, std::int64_t slot) const;
  std::int64_t bytes() const;  // of what it remembers
  std::int64_t entries() const { return static_cast<std::int64_t>(blocks_.size()); }
  const BlockImportance& block(std::int64_t entry) const {
    return blocks_[static_cast<std::size_t>(entry)];
  }

 private:
  double Aggregated(double mass, std::int64_t lifetime) const;

  std::int64_t block_size_;
  ImportanceOptions options_;
  std::vector<BlockImportance> blocks_;
  std::vector<double> token_mass_;  // [entries, block_size], pooled
  std::vector<float> pooled_;
};

}  // namespace carousel
