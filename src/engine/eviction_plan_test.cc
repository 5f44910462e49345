// SPDX-License-Identifier: Apache-2.0
#include "engine/eviction_plan.h"

#include <gmock/gmock.h>
#include <gtest/gtest.h>

namespace carousel {
namespace {

using ::testing::ElementsAre;
using ::testing::IsEmpty;

constexpr std::int64_t kBlock = 8;

// Blocks 0, 10, 20, ... of the stream, all full.
std::vector<TableEntry> Entries(std::int64_t count) {
  std::vector<TableEntry> entries;
  for (std::int64_t i = 0; i < count; ++i)
    entries.push_back({.logical = Position{10 * i * kBlock}, .tokens = kBlock});
  return entries;
}

RecalledBlock Block(std::int64_t number) {
  return {.written = Position{number}, .logical = Position{number * kBlock}};
}

EarnedMass Earned(const std::vector<double>& resident, std::vector<GivenMass> recalled) {
  EarnedMass earned{.resident = resident, .recalled = std::move(recalled), .factor = 2.0};
  for (const GivenMass& given : earned.recalled)
    earned.blocks.push_back(Block(given.logical.value / kBlock));
  return earned;
}

TEST(PlanExchange, LosesTheVictimsWhereNothingIsRecalled) {
  const EvictionPlan plan = PlanExchange(Entries(6), std::vector<std::int64_t>{1, 2, 3},
                                         std::vector<std::int64_t>{1, 3}, {});
  EXPECT_THAT(plan.leaves, ElementsAre(1, 3));
  EXPECT_THAT(plan.returns, IsEmpty());
}

TEST(PlanExchange, GivesPlacesOfWeakCandidatesToWhatWasLookedAtMore) {
  const std::vector<double> resident = {9.0, 5.0, 1.0, 0.5, 4.0, 9.0};
  const EvictionPlan plan =
      PlanExchange(Entries(6), std::vector<std::int64_t>{1, 2, 3, 4}, std::vector<std::int64_t>{3},
                   Earned(resident, {{Position{11 * kBlock}, 2.5}, {Position{12 * kBlock}, 7.9}}));
  // 7.9 is more than twice 1.0, and 2.5 no more than twice 4.0. What goes anyway gives no place.
  EXPECT_THAT(plan.leaves, ElementsAre(2, 3));
  ASSERT_EQ(plan.returns.size(), 1U);
  EXPECT_EQ(plan.returns[0].logical, Position{12 * kBlock});
  EXPECT_EQ(plan.returns[0].written, Position{12});
}

TEST(PlanExchange, LeavesAloneWhatNoQueryHasSeen) {
  const std::vector<double> resident = {9.0, 5.0};  // entries 2 and 3 are new
  const EvictionPlan plan =
      PlanExchange(Entries(5), std::vector<std::int64_t>{1, 2, 3}, std::vector<std::int64_t>{2},
                   Earned(resident, {{Position{11 * kBlock}, 10.5}, {Position{12 * kBlock}, 8.0}}));
  EXPECT_THAT(plan.leaves, ElementsAre(1, 2));
  ASSERT_EQ(plan.returns.size(), 1U);
  EXPECT_EQ(plan.returns[0].logical, Position{11 * kBlock});
}

TEST(PlanExchange, ChangesNothingWhereNothingHasToGo) {
  const std::vector<double> resident = {0.0, 0.0, 0.0};
  const EvictionPlan plan = PlanExchange(Entries(3), std::vector<std::int64_t>{1}, {},
                                         Earned(resident, {{Position{88}, 5.0}}));
  EXPECT_THAT(plan.leaves, IsEmpty());
  EXPECT_THAT(plan.returns, IsEmpty());
}

}  // namespace
}  // namespace carousel
