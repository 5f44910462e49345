// SPDX-License-Identifier: Apache-2.0
#include <gmock/gmock.h>
#include <gtest/gtest.h>

#include <cmath>
#include <memory>
#include <string>
#include <tuple>

#include "base/parallel.h"
#include "measure/attention_load.h"
#include "measure/contender.h"
#include "measure/machine_speed.h"
#include "measure/our_attention.h"
#include "measure/statistics.h"

namespace carousel {
namespace {

using ::testing::Each;
using ::testing::ElementsAre;

TEST(SpreadOf, IsTheMiddleAndTheEnds) {
  const auto numbers = [](const std::vector<double>& values) {
    const Spread spread = SpreadOf(values);
    return std::make_tuple(spread.median, spread.least, spread.most);
  };
  EXPECT_EQ(numbers({5}), std::make_tuple(5, 5, 5));
  EXPECT_EQ(numbers({9, 1, 4}), std::make_tuple(4, 1, 9));
  EXPECT_EQ(numbers({9, 1, 4, 5}), std::make_tuple(4.5, 1, 9));
}

// Writes its name down.
class Scribe : public Contender {
 public:
  Scribe(char name, std::string* log) : name_(name), log_(log) {}
  void Run() override { *log_ += name_; }

 private:
  char name_;
  std::string* log_;
};

TEST(TakeTurns, AlternatesAfterAWarmUp) {
  std::string log;
  Scribe a('a', &log), b('b', &log), c('c', &log);
  Contender* const contenders[] = {&a, &b, &c};
  const std::vector<Spread> spreads =
      TakeTurns(contenders, {.count = 3, .enough_seconds = 1e9},
                [&](std::int64_t round) { log += std::to_string(round); });
  EXPECT_EQ(log, "0abc1abc2cba3abc");
}

TEST(MeasureMachine, IsPlausible) {
  const MachineSpeed speed = MeasureMachine();
  EXPECT_FALSE(speed.target.empty());
  EXPECT_EQ(speed.threads, ParallelWidth());
  EXPECT_GE(speed.cache_bytes, 1 << 17);
  EXPECT_GT(speed.memory_gb_per_s, 0.1);
  EXPECT_LT(speed.memory_gb_per_s, 1e5);
  EXPECT_GT(speed.peak_gflop_per_s, 0.1);
  EXPECT_LT(speed.peak_gflop_per_s, 1e6);
}

AttentionShape SmallShape(std::int64_t context, std::int64_t queries) {
  return {
      .layer = {.query_heads = 4, .kv_heads = 2, .key_dim = 16, .value_dim = 16, .scale = 0.25F},
      .context = context,
      .queries = queries,
      .layers = 3};
}

TEST(AttentionShape, CountsWhatIsVisible) {
  // Four heads, 32 multiply-adds for each token seen.
  EXPECT_EQ(SmallShape(64, 1).FlopsPerLayer(), 64 * 4 * 64);
  EXPECT_EQ(SmallShape(64, 2).FlopsPerLayer(), (63 + 64) * 4 * 64);
  EXPECT_EQ(SmallShape(64, 64).FlopsPerLayer(), 64 * 65 / 2 * 4 * 64);
}

TEST(AttentionLoad, GoesThroughMoreThanTheCacheHolds) {
  const AttentionLoad load = MakeAttentionLoad(SmallShape(64, 1), 1000);
  EXPECT_EQ(load.Copies(10), 34);
  EXPECT_EQ(load.Copies(333), 2);
  EXPECT_EQ(load.Copies(334), 1);
  const OurCaches caches(load, KvType::kF32);
  EXPECT_EQ(caches.bytes_per_layer(), 64 * 2 * 32 * 4);
  EXPECT_EQ(caches.layers(), 3);
  const AttentionLoad wide = MakeAttentionLoad(SmallShape(64, 1), 1'000'000);
  const OurCaches copies(wide, KvType::kInt4);
  EXPECT_EQ(copies.layers() % 3, 0);
  EXPECT_GE(copies.layers() * copies.bytes_per_layer(), 1'000'000);
}

TEST(OurAttention, DoesTheWork) {
  for (const std::int64_t queries : {1, 64}) {
    const AttentionLoad load = MakeAttentionLoad(SmallShape(64, queries), 0);
    const ReferenceOutput expected = ReferenceOf(load);
    for (const KvType type : {KvType::kF32, KvType::kF16, KvType::kInt8}) {
      OurAttention ours(load, std::make_shared<OurCaches>(load, type), kNoShifts);
      EXPECT_EQ(ours.facts().layers, 3);
      ours.Run();
      const std::vector<float> out = ours.Output();
      ASSERT_EQ(out.size(), expected.out.size());
      // Half an int8 step of values up to 4 is 0.016; keys of that noise move the weights as well.
      const double tolerance = type == KvType::kInt8 ? 0.1 : type == KvType::kF16 ? 1e-2 : 1e-5;
      for (std::size_t i = 0; i < out.size(); ++i)
        EXPECT_NEAR(out[i], expected.out[i], tolerance) << ours.facts().kv_type << " " << i;
    }
  }
}

TEST(OurAttention, ShiftsTurnQueries) {
  const AttentionLoad load = MakeAttentionLoad(SmallShape(128, 1), 0);
  const auto caches = std::make_shared<OurCaches>(load, KvType::kF32);
  std::vector<std::string> names;
  std::vector<std::vector<float>> outputs;
  for (const std::int64_t shifts : {kNoShifts, std::int64_t{2}, kShiftInEveryBlock}) {
    OurAttention ours(load, caches, shifts);
    ours.Run();
    names.push_back(ours.facts().shifts);
    outputs.push_back(ours.Output());
    EXPECT_THAT(outputs.back(), Each(::testing::Truly([](float x) { return std::isfinite(x); })));
  }
  EXPECT_THAT(names, ElementsAre("none", "2", "every_block"));
  EXPECT_NE(outputs[0], outputs[1]);
  EXPECT_NE(outputs[1], outputs[2]);
}

}  // namespace
}  // namespace carousel
