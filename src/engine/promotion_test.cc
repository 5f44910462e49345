// SPDX-License-Identifier: Apache-2.0
#include "engine/promotion.h"

#include <gtest/gtest.h>

#include <utility>
#include <vector>

namespace carousel {
namespace {

std::vector<GivenMass> Blocks(const std::vector<double>& masses) {
  std::vector<GivenMass> blocks;
  for (const double mass : masses)
    blocks.push_back({.logical = Position{std::ssize(blocks) * 8}, .mass = mass});
  return blocks;
}

// (resident, recalled) places
using Pairs = std::vector<std::pair<std::size_t, std::size_t>>;
Pairs Earned(const std::vector<double>& resident, const std::vector<double>& recalled,
             double factor) {
  Pairs pairs;
  for (const Exchange& exchange : EarnedPlaces(Blocks(resident), Blocks(recalled), factor))
    pairs.emplace_back(exchange.resident, exchange.recalled);
  return pairs;
}

TEST(Promotion, TheStrongestTakesTheWeakestsPlaceWhileItWasGivenMore) {
  EXPECT_EQ(Earned({5.0, 1.0, 2.0, 9.0}, {3.0, 4.5, 0.5}, 1.0), (Pairs{{1, 1}, {2, 0}}));
  EXPECT_EQ(Earned({5.0, 1.0, 2.0, 9.0}, {3.0, 4.5, 0.5}, 2.0), (Pairs{{1, 1}}));
  EXPECT_EQ(Earned({5.0, 1.0, 2.0, 9.0}, {3.0, 4.5, 0.5}, 4.5), Pairs());
}

TEST(Promotion, NobodyEarnsAPlaceWithNothing) {
  EXPECT_EQ(Earned({0.0, 0.0}, {0.0}, 1.0), Pairs());
  EXPECT_EQ(Earned({0.0, 0.0}, {0.1}, 1e6), (Pairs{{0, 0}}));
  EXPECT_EQ(Earned({}, {1.0}, 1.0), Pairs());
  EXPECT_EQ(Earned({1.0}, {}, 1.0), Pairs());
}

TEST(Promotion, OfEqualOnesTheNewerStaysAndComes) {
  EXPECT_EQ(Earned({1.0, 1.0}, {2.0, 2.0}, 1.0), (Pairs{{0, 1}, {1, 0}}));
  EXPECT_EQ(Earned({1.0, 3.0}, {2.0, 2.0}, 1.0), (Pairs{{0, 1}}));
}

TEST(Promotion, MassIsAddedByPosition) {
  std::vector<GivenMass> list;
  for (const std::int64_t logical : {16, 8, 16, 32, 8, 8}) AddMass(Position{logical}, 1.0, &list);
  ASSERT_EQ(list.size(), 3U);
  EXPECT_EQ(list[0].logical, Position{8});
  EXPECT_EQ(list[0].mass, 3.0);
  EXPECT_EQ(list[1].logical, Position{16});
  EXPECT_EQ(list[1].mass, 2.0);
  EXPECT_EQ(list[2].logical, Position{32});
}

}  // namespace
}  // namespace carousel
