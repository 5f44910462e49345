// SPDX-License-Identifier: Apache-2.0
#include "engine/keep_largest.h"

#include <gtest/gtest.h>
#include <rapidcheck/gtest.h>

#include <algorithm>
#include <numeric>
#include <vector>

namespace carousel {
namespace {

std::vector<std::int64_t> Kept(const std::vector<std::int64_t>& slots,
                               const std::vector<float>& mass, std::int64_t count) {
  std::vector<std::int32_t> ranked;
  std::vector<std::int64_t> kept;
  KeepLargest(slots, mass, count, &ranked, &kept);
  return kept;
}

// By sorting; of equal ones those given first.
std::vector<std::int64_t> Sorted(const std::vector<std::int64_t>& slots,
                                 const std::vector<float>& mass, std::int64_t count) {
  std::vector<std::size_t> order(slots.size());
  std::iota(order.begin(), order.end(), 0);
  std::stable_sort(order.begin(), order.end(), [&](std::size_t left, std::size_t right) {
    return mass[static_cast<std::size_t>(slots[left])] >
           mass[static_cast<std::size_t>(slots[right])];
  });
  order.resize(static_cast<std::size_t>(count));
  std::sort(order.begin(), order.end());
  std::vector<std::int64_t> kept;
  for (const std::size_t i : order) kept.push_back(slots[i]);
  return kept;
}

// Few different masses, so that there are ties.
RC_GTEST_PROP(KeepLargest, KeepsWhatSortingKeeps, (std::vector<std::uint8_t> levels)) {
  std::vector<float> mass;
  std::vector<std::int64_t> slots;
  for (const std::uint8_t level : levels) {
    if (level % 5 != 0) slots.push_back(std::ssize(mass));
    mass.push_back(static_cast<float>(level % 16) * 1e-3F);
  }
  std::reverse(slots.begin(), slots.end());
  for (std::int64_t count = 0; count <= std::ssize(slots); ++count)
    RC_ASSERT(Kept(slots, mass, count) == Sorted(slots, mass, count));
}

TEST(KeepLargest, TellsNeighbouringNumbersApart) {
  const float above = std::nextafter(0.25F, 1.0F);
  EXPECT_EQ(Kept({0, 1, 2, 3}, {0.25F, above, 0.25F, above}, 1), (std::vector<std::int64_t>{1}));
  EXPECT_EQ(Kept({0, 1, 2, 3}, {0.25F, above, 0.25F, above}, 3),
            (std::vector<std::int64_t>{0, 1, 3}));
  EXPECT_EQ(Kept({0, 1}, {0.0F, 1e-45F}, 1), (std::vector<std::int64_t>{1}));
}

}  // namespace
}  // namespace carousel
