// SPDX-License-Identifier: Apache-2.0
// When each block of a cache group was last of use: written to, or given more than its even share
// of the attention that the policy counts. For metrics; nothing is decided by it.
#pragma once

#include <cstdint>
#include <optional>
#include <span>
#include <vector>

#include "carousel/types.h"

namespace carousel {

class BlockUse {
 public:
  // A step after which the stream is `now` tokens long: token_mass is [entries * block_size]. The
  // last entry has been written to.
  void Record(std::span<const float> token_mass, std::int64_t block_size, Position now);
  // Entries that left the table, ascending.
  void Erase(std::span<const std::int64_t> entries);
  // An entry that came back; it is of use from the next step on.
  void Insert(std::int64_t entry);
  void Clear() { last_used_.clear(); }
  // How long the stream was then; nullopt: no attention has been counted since the entry came.
  std::optional<Position> LastUsed(std::int64_t entry) const;

 private:
  std::vector<std::optional<Position>> last_used_;  // [entries]
  std::vector<float> mass_;                         // of the step at hand
};

}  // namespace carousel
