// SPDX-License-Identifier: Apache-2.0
#include "engine/keep_largest.h"

#include <algorithm>
#include <bit>
#include <limits>

namespace carousel {
namespace {

// The largest number that at least `count` of `numbers` reach; none is negative. By halving, as
// counting takes a vector of numbers at a time where sorting takes a branch for each.
std::int32_t CountthLargest(std::span<const std::int32_t> numbers, std::int64_t count) {
  const auto reaching = [&](std::int32_t least) {
    std::int32_t reached = 0;
    for (const std::int32_t number : numbers) reached += number >= least ? 1 : 0;
    return reached;
  };
  std::int32_t low = 0;
  std::int32_t high = std::numeric_limits<std::int32_t>::max();
  while (low < high) {
    const std::int32_t middle = low + (high - low) / 2 + 1;
    const std::int64_t reached = reaching(middle);
    if (reached >= count) low = middle;
    if (reached == count) break;  // whether the largest or not, it tells the same ones apart
    if (reached < count) high = middle - 1;
  }
  return low;
}

}  // namespace

void KeepLargest(std::span<const std::int64_t> slots, std::span<const float> mass,
                 std::int64_t count, std::vector<std::int32_t>* ranked,
                 std::vector<std::int64_t>* kept) {
  ranked->clear();  // masses are not negative, so their bits are in the same order
  for (const std::int64_t slot : slots)
    ranked->push_back(std::bit_cast<std::int32_t>(mass[static_cast<std::size_t>(slot)]));
  const std::int32_t least = CountthLargest(*ranked, count);
  auto equal = count - std::count_if(ranked->begin(), ranked->end(),
                                     [&](std::int32_t value) { return value > least; });
  kept->clear();
  for (std::size_t i = 0; i < slots.size(); ++i) {
    const std::int32_t value = (*ranked)[i];
    if (value > least || (value == least && equal-- > 0)) kept->push_back(slots[i]);
  }
}

}  // namespace carousel
