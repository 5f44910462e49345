// SPDX-License-Identifier: Apache-2.0
// The attention that each token of one cache group received, as the kernel gave it: what
// SingleSequenceEngine::GatherAttention asks for. Importance (src/eviction) pools and divides; this
// does not.
#pragma once

#include <cstdint>
#include <span>
#include <vector>

#include "cache/block_table.h"
#include "carousel/request.h"

namespace carousel {

class AttentionRecord {
 public:
  explicit AttentionRecord(std::int64_t block_size) : block_size_(block_size) {}

  // `token_mass` is [entries * block_size], of `counted_queries` queries; entries that are new
  // start here.
  void Record(std::span<const float> token_mass, std::int64_t counted_queries);
  // Entries that left the table, ascending.
  void Erase(std::span<const std::int64_t> entries);
  // An entry that came back to the table starts here.
  void Insert(std::int64_t entry);
  void Clear();
  // Of all entries of the table, in its order.
  std::vector<BlockAttention> Of(std::span<const TableEntry> entries) const;

 private:
  std::int64_t block_size_;
  std::vector<double> token_mass_;     // [entries * block_size]
  std::vector<std::int64_t> queries_;  // [entries]
};

}  // namespace carousel
