// SPDX-License-Identifier: Apache-2.0
#include "carousel/enums.h"

#include <gtest/gtest.h>

namespace carousel {
namespace {

// Every value has a name of its own, from which it comes back; so the names end where values do.
template <typename Enum, typename Parse>
void ExpectNames(int values, Parse parse) {
  for (int i = 0; i < values; ++i) {
    const auto value = static_cast<Enum>(i);
    ASSERT_FALSE(Name(value).empty()) << i;
    EXPECT_EQ(parse(Name(value)), value) << Name(value);
  }
  EXPECT_EQ(Name(static_cast<Enum>(values)), "");
  EXPECT_EQ(parse(""), std::nullopt);
  EXPECT_EQ(parse("querry"), std::nullopt);
}

TEST(Names, RoundTrip) {
  ExpectNames<Aggregation>(2, ParseAggregation);
  ExpectNames<Rotation>(4, ParseRotation);
  ExpectNames<PositionPolicy>(3, ParsePositionPolicy);
  ExpectNames<PromptEviction>(2, ParsePromptEviction);
  ExpectNames<Grouping>(2, ParseGrouping);
  ExpectNames<Budget>(3, ParseBudget);
  ExpectNames<KvCrushAnchor>(5, ParseKvCrushAnchor);
  ExpectNames<KvType>(5, ParseKvType);
  ExpectNames<StopCriteria>(3, ParseStopCriteria);
}

TEST(Names, AreThoseOfFlags) {
  EXPECT_EQ(Name(Rotation::kQuery), "query");
  EXPECT_EQ(Name(Aggregation::kNormSum), "norm_sum");
  EXPECT_EQ(Name(PromptEviction::kAtEnd), "at_end");
  EXPECT_EQ(Name(KvType::kInt4), "int4");
}

}  // namespace
}  // namespace carousel
