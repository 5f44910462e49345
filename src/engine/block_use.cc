// SPDX-License-Identifier: Apache-2.0
#include "engine/block_use.h"

#include <algorithm>
#include <array>
#include <numeric>

#include "base/check.h"
#include "eviction/policy.h"

namespace carousel {
namespace {

// Of a multiple of 8 numbers, as block sizes are: eight sums side by side, which one instruction
// adds to.
float Sum(std::span<const float> numbers) {
  constexpr std::size_t kLanes = 8;
  std::array<float, kLanes> sums{};
  for (std::size_t i = 0; i < numbers.size(); i += kLanes) {
    for (std::size_t lane = 0; lane < kLanes; ++lane) sums[lane] += numbers[i + lane];
  }
  return std::accumulate(sums.begin(), sums.end(), 0.0F);
}

}  // namespace

void BlockUse::Record(std::span<const float> token_mass, std::int64_t block_size, Position now) {
  CAROUSEL_CHECK_EQ(block_size % 8, 0);
  const auto width = static_cast<std::size_t>(block_size);
  const std::size_t entries = token_mass.size() / width;
  mass_.resize(entries);
  last_used_.resize(entries);
  float all = 0.0F;
  for (std::size_t entry = 0; entry < entries; ++entry) {
    mass_[entry] = Sum(token_mass.subspan(entry * width, width));
    all += mass_[entry];
  }
  const float even = all / static_cast<float>(std::max<std::size_t>(1, entries));
  for (std::size_t entry = 0; entry < entries; ++entry) {
    const bool is_last = entry + 1 == entries;
    if (is_last || mass_[entry] > even || !last_used_[entry]) last_used_[entry] = now;
  }
}

void BlockUse::Erase(std::span<const std::int64_t> entries) {
  EraseEntries(entries, 1, &last_used_);
}

void BlockUse::Insert(std::int64_t entry) { InsertEntry(entry, 1, &last_used_); }

std::optional<Position> BlockUse::LastUsed(std::int64_t entry) const {
  if (entry >= std::ssize(last_used_)) return std::nullopt;
  return last_used_[static_cast<std::size_t>(entry)];
}

}  // namespace carousel
