// SPDX-License-Identifier: Apache-2.0
#include "rope/rotate.h"

#include <gtest/gtest.h>
#include <hwy/highway.h>
#include <rapidcheck/gtest.h>

#include <algorithm>
#include <cmath>
#include <cstddef>
#include <numbers>
#include <ostream>
#include <random>
#include <string>
#include <utility>
#include <vector>

namespace carousel {

// For rapidcheck's and GoogleTest's messages.
void PrintTo(KeyLayout layout, std::ostream* out) {
  *out << (layout == KeyLayout::kTokenMajor ? "token-major" : "dimension-major");
}

namespace {

constexpr double kFloatEpsilon = 0x1p-24;
// cos, sin, two products and a sum are each rounded once: below three roundings of the pair's
// length.
constexpr double kRotationError = 3.0 * kFloatEpsilon;

// A rotation somewhere in a head: all tails of all vector widths occur.
struct Case {
  LayerRope rope;
  std::int64_t head_dim = 0;
};

Case ArbitraryCase() {
  const std::int64_t pairs = *rc::gen::inRange<std::int64_t>(1, 70);
  Case result;
  result.rope.pairing = *rc::gen::element(Pairing::kHalves, Pairing::kNeighbours);
  result.rope.first_dim = *rc::gen::inRange<std::int64_t>(0, 20);
  result.rope.rotated_dims = 2 * pairs;
  result.rope.frequencies = PlainFrequencies(*rc::gen::element(10.0, 1e4, 1e6), 2 * pairs);
  result.head_dim = result.rope.first_dim + 2 * pairs + *rc::gen::inRange<std::int64_t>(0, 20);
  return result;
}

std::vector<float> RandomFloats(std::int64_t count) {
  std::mt19937 random(*rc::gen::arbitrary<std::uint32_t>());
  std::normal_distribution<float> normal;
  std::vector<float> values(static_cast<std::size_t>(count));
  for (float& value : values) value = normal(random);
  return values;
}

RotationTable MakeTable(const LayerRope& rope, std::int64_t block_size, std::int64_t largest) {
  RotationTable table(rope, block_size);
  table.Extend(largest);
  return table;
}

// Dimensions of pair i, written down independently of the code under test.
std::pair<std::size_t, std::size_t> PairDims(const LayerRope& rope, std::size_t i) {
  const std::size_t first = static_cast<std::size_t>(rope.first_dim);
  const std::size_t half = static_cast<std::size_t>(rope.rotated_dims) / 2;
  if (rope.pairing == Pairing::kHalves) return {first + i, first + half + i};
  return {first + 2 * i, first + 2 * i + 1};
}

// Fails where `actual` is further from the double-precision rotation of `from` than rounding
// explains.
void AssertRotated(const LayerRope& rope, double position, std::int64_t head_dim, const float* from,
                   const float* actual, double tolerance) {
  const std::vector<double> exact_from(from, from + head_dim);
  std::vector<double> expected(exact_from.size());
  RotateVectorReference(rope, position, head_dim, exact_from.data(), expected.data());
  std::vector<double> allowed(expected.size(),
                              0.0);  // outside the rotated dimensions not a bit may change
  for (std::size_t i = 0; i < rope.frequencies.size(); ++i) {
    const auto [x, y] = PairDims(rope, i);
    allowed[x] = allowed[y] = tolerance * std::hypot(exact_from[x], exact_from[y]);
  }
  for (std::size_t dim = 0; dim < expected.size(); ++dim) {
    RC_ASSERT(std::abs(actual[dim] - expected[dim]) <= allowed[dim]);
  }
}

// Runs the test on each instruction set of this machine, as Highway's own tests do.
class OnEveryTarget : public testing::TestWithParam<std::int64_t> {
 protected:
  void SetUp() override { Choose(GetParam()); }
  void TearDown() override { Choose(0); }

 private:
  static void Choose(std::int64_t target) {
    hwy::SetSupportedTargetsForTest(target);
    hwy::GetChosenTarget().Update(hwy::SupportedTargets());
  }
};

// Not from SetUp's view of things: all that were compiled and that this machine runs.
std::vector<std::int64_t> Targets() {
  std::vector<std::int64_t> targets;
  const std::int64_t all = hwy::SupportedTargets() & HWY_TARGETS;
  for (std::int64_t bits = all; bits != 0; bits &= bits - 1) targets.push_back(bits & -bits);
  return targets;
}

INSTANTIATE_TEST_SUITE_P(Rotate, OnEveryTarget, testing::ValuesIn(Targets()),
                         [](const testing::TestParamInfo<std::int64_t>& target) {
                           return std::string(hwy::TargetName(target.param));
                         });

TEST_P(OnEveryTarget, VectorEqualsReference) {
  rc::detail::checkGTest([] {
    const Case c = ArbitraryCase();
    const std::int64_t multiple = *rc::gen::inRange<std::int64_t>(-300, 301);
    const RotationTable table = MakeTable(c.rope, 32, 300);
    const std::vector<float> from = RandomFloats(c.head_dim);
    std::vector<float> to(from.size(), 77.0F);
    RotateVector(c.rope, table.row(multiple), c.head_dim, from.data(), to.data());
    AssertRotated(c.rope, static_cast<double>(32 * multiple), c.head_dim, from.data(), to.data(),
                  kRotationError);
    std::vector<float> in_place = from;
    RotateVector(c.rope, table.row(multiple), c.head_dim, in_place.data(), in_place.data());
    RC_ASSERT(in_place == to);
  });
}

TEST_P(OnEveryTarget, VectorStaysInsideItsBounds) {
  rc::detail::checkGTest([] {
    const Case c = ArbitraryCase();
    const RotationTable table = MakeTable(c.rope, 32, 1);
    const std::vector<float> from = RandomFloats(c.head_dim);
    std::vector<float> to(from.size() + 32, 77.0F);
    RotateVector(c.rope, table.row(1), c.head_dim, from.data(), to.data() + 16);
    for (std::size_t i = 0; i < 16; ++i) {
      RC_ASSERT(to[i] == 77.0F);
      RC_ASSERT(to[to.size() - 1 - i] == 77.0F);
    }
  });
}

RC_GTEST_PROP(Rotate, TwoRotationsAreTheRotationByTheirSum, ()) {
  const Case c = ArbitraryCase();
  const std::int64_t a = *rc::gen::inRange<std::int64_t>(-300, 301);
  const std::int64_t b = *rc::gen::inRange<std::int64_t>(-300, 301);
  const RotationTable table = MakeTable(c.rope, 16, 600);
  const std::vector<float> from = RandomFloats(c.head_dim);
  std::vector<float> twice = from;
  RotateVector(c.rope, table.row(a), c.head_dim, twice.data(), twice.data());
  RotateVector(c.rope, table.row(b), c.head_dim, twice.data(), twice.data());
  std::vector<float> once = from;
  RotateVector(c.rope, table.row(a + b), c.head_dim, once.data(), once.data());
  for (std::size_t i = 0; i < c.rope.frequencies.size(); ++i) {
    const auto [x, y] = PairDims(c.rope, i);
    const double length = std::hypot(from[x], from[y]);
    RC_ASSERT(std::hypot(twice[x] - once[x], twice[y] - once[y]) <=
              3.0 * std::numbers::sqrt2 * kRotationError * length);
  }
}

RC_GTEST_PROP(Rotate, KeepsLengths, ()) {
  const Case c = ArbitraryCase();
  const std::int64_t multiple = *rc::gen::inRange<std::int64_t>(-300, 301);
  const RotationTable table = MakeTable(c.rope, 16, 300);
  const std::vector<float> from = RandomFloats(c.head_dim);
  std::vector<float> to(from.size());
  RotateVector(c.rope, table.row(multiple), c.head_dim, from.data(), to.data());
  for (std::size_t i = 0; i < c.rope.frequencies.size(); ++i) {
    const auto [x, y] = PairDims(c.rope, i);
    const double before = std::hypot(double{from[x]}, double{from[y]});
    const double after = std::hypot(double{to[x]}, double{to[y]});
    RC_ASSERT(std::abs(after - before) <= std::numbers::sqrt2 * kRotationError * before);
  }
}

TEST(Rotate, MovesAScoreByTheDifferenceOfPositionsOnly) {
  // R(s) R(b) q against R(a) k is q against k at distance b + s - a: the mathematics of query
  // rotation.
  const LayerRope rope{.rotated_dims = 8, .frequencies = PlainFrequencies(1e4, 8)};
  const std::vector<double> q = {1, -2, 3, 4, 0.5, 0.25, -1, 2};
  const std::vector<double> k = {0.5, 1, -1, 2, 3, -0.5, 0.125, 1};
  const auto score = [&](double query_position, double key_position) {
    std::vector<double> query(8);
    std::vector<double> key(8);
    RotateVectorReference(rope, query_position, 8, q.data(), query.data());
    RotateVectorReference(rope, key_position, 8, k.data(), key.data());
    double sum = 0.0;
    for (std::size_t i = 0; i < 8; ++i) sum += query[i] * key[i];
    return sum;
  };
  EXPECT_NEAR(score(1000.0 - 640.0, 100.0), score(260.0, 0.0), 1e-10);
  EXPECT_GT(std::abs(score(260.0, 0.0) - score(261.0, 0.0)), 1e-3);
}

TEST(Rotate, ReferenceFollowsTheEquation) {
  // By hand: a quarter turn takes (x, y) to (-y, x), in either pairing.
  const double quarter = std::numbers::pi / 2.0;
  const std::vector<double> from = {9, 1, 2, 3, 4, 8};
  std::vector<double> to(6);
  LayerRope rope{.first_dim = 1, .rotated_dims = 4, .frequencies = {quarter, 0.0}};
  RotateVectorReference(rope, 1.0, 6, from.data(), to.data());
  const std::vector<double> halves = {9, -3, 2, 1, 4, 8};
  for (std::size_t i = 0; i < 6; ++i) EXPECT_NEAR(to[i], halves[i], 1e-15) << i;
  rope.pairing = Pairing::kNeighbours;
  RotateVectorReference(rope, 1.0, 6, from.data(), to.data());
  const std::vector<double> neighbours = {9, -2, 1, 3, 4, 8};
  for (std::size_t i = 0; i < 6; ++i) EXPECT_NEAR(to[i], neighbours[i], 1e-15) << i;
}

TEST(Rotate, ALayerWithoutRotationIsCopied) {
  const std::vector<float> from = {1, 2, 3};
  std::vector<float> to(3);
  RotateVector(LayerRope{}, RotationRow{}, 3, from.data(), to.data());
  EXPECT_EQ(to, from);
}

// Blocks of keys, each [kv_heads, block_size, head_dim].
struct Blocks {
  std::int64_t kv_heads = 0;
  std::int64_t block_size = 0;
  std::int64_t head_dim = 0;
  std::vector<std::vector<float>> blocks;

  std::size_t index(KeyLayout layout, std::int64_t head, std::int64_t token,
                    std::int64_t dim) const {
    const std::int64_t inner =
        layout == KeyLayout::kTokenMajor ? token * head_dim + dim : dim * block_size + token;
    return static_cast<std::size_t>(head * block_size * head_dim + inner);
  }
  std::vector<float*> pointers() {
    std::vector<float*> result;
    for (std::vector<float>& block : blocks) result.push_back(block.data());
    return result;
  }
};

Blocks ToDimensionMajor(const Blocks& from) {
  Blocks to = from;
  for (std::size_t b = 0; b < from.blocks.size(); ++b) {
    for (std::int64_t head = 0; head < from.kv_heads; ++head) {
      for (std::int64_t token = 0; token < from.block_size; ++token) {
        for (std::int64_t dim = 0; dim < from.head_dim; ++dim) {
          to.blocks[b][from.index(KeyLayout::kDimensionMajor, head, token, dim)] =
              from.blocks[b][from.index(KeyLayout::kTokenMajor, head, token, dim)];
        }
      }
    }
  }
  return to;
}

// Deltas in runs of equal ones as well as all different.
std::vector<std::int64_t> ArbitraryMultiples(std::int64_t count) {
  const std::int64_t largest = *rc::gen::element<std::int64_t>(1, 3, 40);
  return *rc::gen::container<std::vector<std::int64_t>>(
      static_cast<std::size_t>(count), rc::gen::inRange<std::int64_t>(-largest, largest + 1));
}

TEST_P(OnEveryTarget, KeyBlocksEqualReferenceInBothLayoutsAndDeltaForms) {
  rc::detail::checkGTest([] {
    const Case c = ArbitraryCase();
    Blocks before{.kv_heads = *rc::gen::inRange<std::int64_t>(1, 4),
                  .block_size = *rc::gen::element<std::int64_t>(1, 5, 8, 24, 32),
                  .head_dim = c.head_dim,
                  .blocks = {}};
    const std::int64_t num_blocks = *rc::gen::inRange<std::int64_t>(0, 4);
    for (std::int64_t b = 0; b < num_blocks; ++b) {
      before.blocks.push_back(RandomFloats(before.kv_heads * before.block_size * c.head_dim));
    }
    const bool per_token = *rc::gen::arbitrary<bool>();
    const std::int64_t columns = per_token ? before.block_size : 1;
    const std::vector<std::int64_t> multiples = ArbitraryMultiples(num_blocks * columns);
    const KeyDeltas deltas{.multiples = multiples, .columns = columns};
    const RotationTable table = MakeTable(c.rope, before.block_size, 40);

    Blocks token_major = before;
    RotateKeyBlocks(table, KeyLayout::kTokenMajor, before.kv_heads, c.head_dim,
                    token_major.pointers(), deltas);
    for (std::size_t b = 0; b < before.blocks.size(); ++b) {
      for (std::int64_t head = 0; head < before.kv_heads; ++head) {
        for (std::int64_t token = 0; token < before.block_size; ++token) {
          const std::size_t delta = b * static_cast<std::size_t>(columns) +
                                    static_cast<std::size_t>(per_token ? token : 0);
          const std::size_t at = before.index(KeyLayout::kTokenMajor, head, token, 0);
          AssertRotated(c.rope, static_cast<double>(multiples[delta] * before.block_size),
                        c.head_dim, &before.blocks[b][at], &token_major.blocks[b][at],
                        kRotationError);
        }
      }
    }

    Blocks dimension_major = ToDimensionMajor(before);
    RotateKeyBlocks(table, KeyLayout::kDimensionMajor, before.kv_heads, c.head_dim,
                    dimension_major.pointers(), deltas);
    RC_ASSERT(dimension_major.blocks == ToDimensionMajor(token_major).blocks);
  });
}

RC_GTEST_PROP(RotateKeyBlocks, ADeltaPerBlockIsThatDeltaForEachToken, ()) {
  const Case c = ArbitraryCase();
  const KeyLayout layout = *rc::gen::element(KeyLayout::kTokenMajor, KeyLayout::kDimensionMajor);
  const std::int64_t multiple = *rc::gen::inRange<std::int64_t>(-9, 10);
  const RotationTable table = MakeTable(c.rope, 8, 9);
  Blocks per_block{.kv_heads = 2, .block_size = 8, .head_dim = c.head_dim, .blocks = {}};
  per_block.blocks.push_back(RandomFloats(2 * 8 * c.head_dim));
  Blocks per_token = per_block;
  const std::vector<std::int64_t> one = {multiple};
  RotateKeyBlocks(table, layout, 2, c.head_dim, per_block.pointers(),
                  {.multiples = one, .columns = 1});
  const std::vector<std::int64_t> eight(8, multiple);
  RotateKeyBlocks(table, layout, 2, c.head_dim, per_token.pointers(),
                  {.multiples = eight, .columns = 8});
  RC_ASSERT(per_block.blocks == per_token.blocks);
}

TEST(RotateKeyBlocks, AZeroDeltaLeavesEveryBit) {
  const LayerRope rope{.rotated_dims = 4, .frequencies = PlainFrequencies(1e4, 4)};
  const RotationTable table = MakeTable(rope, 2, 0);
  Blocks keys{.kv_heads = 1, .block_size = 2, .head_dim = 4, .blocks = {}};
  keys.blocks.push_back({-0.0F, 1e-42F, INFINITY, 3, 4, 5, 6, 7});
  const Blocks before = keys;
  const std::vector<std::int64_t> zero = {0};
  RotateKeyBlocks(table, KeyLayout::kTokenMajor, 1, 4, keys.pointers(),
                  {.multiples = zero, .columns = 1});
  EXPECT_EQ(keys.blocks, before.blocks);
  EXPECT_TRUE(std::signbit(keys.blocks[0][0]));
}

TEST(RotateKeyBlocksDeathTest, ChecksShapes) {
  const LayerRope rope{.rotated_dims = 4, .frequencies = PlainFrequencies(1e4, 4)};
  const RotationTable table = MakeTable(rope, 8, 1);
  std::vector<float> block(8 * 4);
  std::vector<float*> blocks = {block.data()};
  const std::vector<std::int64_t> two = {1, 1};
  const auto rotate = [&](std::int64_t head_dim, std::int64_t columns) {
    RotateKeyBlocks(table, KeyLayout::kTokenMajor, 1, head_dim, blocks,
                    {.multiples = two, .columns = columns});
  };
  EXPECT_DEATH(rotate(4, 1), "multiples.size");
  EXPECT_DEATH(rotate(4, 2), "columns");
  EXPECT_DEATH(rotate(2, 1), "head_dim");
}

}  // namespace
}  // namespace carousel
