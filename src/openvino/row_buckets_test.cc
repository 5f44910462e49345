// SPDX-License-Identifier: Apache-2.0
#include "openvino/row_buckets.h"

#include <gtest/gtest.h>

#include <set>

namespace carousel {
namespace {

TEST(RowBucketsTest, SmallStepsKeepTheirRows) {
  for (std::size_t rows = 0; rows <= 6; ++rows) EXPECT_EQ(PaddedRows(rows), rows);
}

TEST(RowBucketsTest, ARowCountIsPaddedToTheNextBucket) {
  std::size_t bucket = 0;
  for (std::size_t rows = 1; rows <= 20000; ++rows) {
    if (rows > bucket) bucket = PaddedRows(rows);
    ASSERT_GE(bucket, rows);
    ASSERT_EQ(PaddedRows(rows), bucket) << rows;
  }
}

TEST(RowBucketsTest, PaddingIsFewRows) {
  for (std::size_t rows = 1; rows <= 20000; ++rows) {
    const std::size_t padding = PaddedRows(rows) - rows;
    ASSERT_LE(padding * 8, rows + 7) << rows;
    if (rows <= 32) {
      ASSERT_LE(padding, 1U) << rows;
    }
  }
}

TEST(RowBucketsTest, BucketsAreFew) {
  std::set<std::size_t> buckets;
  for (std::size_t rows = 1; rows <= 256; ++rows) buckets.insert(PaddedRows(rows));
  EXPECT_LE(buckets.size(), 53U);
  for (std::size_t rows = 257; rows <= 4096; ++rows) buckets.insert(PaddedRows(rows));
  EXPECT_LE(buckets.size(), 85U);
}

TEST(RowBucketsTest, AtLeastSoManyAreRunWhereAnyAre) {
  EXPECT_EQ(PaddedRows(0, 8), 0U);
  EXPECT_EQ(PaddedRows(1, 8), 8U);
  EXPECT_EQ(PaddedRows(8, 8), 8U);
  EXPECT_EQ(PaddedRows(9, 8), PaddedRows(9));
  EXPECT_EQ(PaddedRows(3, 0), 3U);
}

TEST(RowBucketsTest, UsualChunksAreBucketsThemselves) {
  for (const std::size_t chunk : {32, 64, 96, 128, 192, 256, 384, 512, 1024, 2048, 4096})
    EXPECT_EQ(PaddedRows(chunk), chunk);
}

}  // namespace
}  // namespace carousel
