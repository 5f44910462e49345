// SPDX-License-Identifier: Apache-2.0
#include "attention/recall_sketch.h"

#include <gtest/gtest.h>
#include <hwy/targets.h>

#include <cmath>
#include <random>

#include "cache/block_codec.h"
#include "rope/rotate.h"
#include "testing/random_cases.h"
#include "testing/rounding_bound.h"

namespace carousel {
namespace {

// A store of one lane, filled with sketches of random blocks, and a sweep over it.
struct Load {
  AttentionLayerSpec layer;
  std::unique_ptr<RotationTable> rotation;
  std::unique_ptr<RecallStore> store;
  std::vector<float> q;
  SketchSweep sweep;
};

struct LoadOptions {
  std::int64_t key_dim = 16;
  std::int64_t group = 3;
  std::int64_t queries = 2;
  std::int64_t blocks = 100;
  bool rotates = true;
  float soft_cap = 0.0F;
  bool alibi = false;
  float spread = 0.3F;  // of keys around their block's mean
};

std::vector<float> Normal(std::int64_t count, float deviation, std::mt19937_64* generator) {
  std::normal_distribution<float> normal(0.0F, deviation);
  std::vector<float> numbers(static_cast<std::size_t>(count));
  for (float& x : numbers) x = normal(*generator);
  return numbers;
}

// A block's codes: keys that lie around one mean.
AlignedBuffer<std::byte> RandomBlock(const BlockShape& shape, float spread,
                                     std::mt19937_64* generator) {
  AlignedBuffer<std::byte> data(shape.bytes());
  const std::vector<float> mean = Normal(shape.key_dim, 1.0F, generator);
  std::vector<float> keys = Normal(shape.block_size * shape.key_dim, spread, generator);
  for (std::size_t i = 0; i < keys.size(); ++i)
    keys[i] += mean[i % static_cast<std::size_t>(shape.key_dim)];
  CodecFor(shape.key_type)
      .WriteKeys(data.data(), shape.block_size, shape.key_dim, 0, shape.block_size, keys.data(),
                 shape.key_dim);
  CodecFor(shape.value_type)
      .WriteValues(data.data() + shape.value_offset(0), shape.block_size, shape.value_dim, 0,
                   shape.block_size, keys.data(), shape.value_dim);
  return data;
}

Load MakeLoad(const LoadOptions& options, std::mt19937_64* generator) {
  Load load;
  constexpr std::int64_t kBlockSize = 16;
  load.layer = {.query_heads = 2 * options.group,
                .kv_heads = 2,
                .key_dim = options.key_dim,
                .value_dim = options.key_dim,
                .scale = 1.0F / std::sqrt(static_cast<float>(options.key_dim)),
                .soft_cap = options.soft_cap};
  if (options.alibi) load.layer.alibi_slopes = Normal(2 * options.group, 0.1F, generator);
  if (options.rotates) {
    load.rotation = std::make_unique<RotationTable>(
        LayerRope{.rotated_dims = options.key_dim,
                  .frequencies = PlainFrequencies(10000.0, options.key_dim)},
        kBlockSize);
    load.rotation->Extend(64);
  }
  const BlockShape shape{.block_size = kBlockSize,
                         .kv_heads = 1,
                         .key_dim = options.key_dim,
                         .value_dim = options.key_dim};
  const std::int64_t depth = SketchDepth(options.key_dim);
  load.store = std::make_unique<RecallStore>(RecallStoreOptions{.lanes = {{shape, depth}}});
  std::vector<float> sketch(static_cast<std::size_t>(depth));
  for (std::int64_t i = 0; i < options.blocks; ++i) {
    const auto block = RandomBlock(shape, options.spread, generator);
    const BlockHead head{.data = block.data(), .shape = &shape, .head = 0};
    const Position written{static_cast<std::int64_t>((*generator)() % 64) * kBlockSize};
    SketchBlock(head, load.rotation.get(), written, sketch);
    load.store->Add(0, written, Position{i * kBlockSize}, head, sketch);
  }
  for (std::int64_t i = 0; i < options.blocks / 10; ++i) {
    const auto slot = static_cast<std::int64_t>((*generator)() % options.blocks);
    if (load.store->slots(0)[static_cast<std::size_t>(slot)].present()) load.store->Remove(0, slot);
  }
  load.q = Normal(options.queries * load.layer.query_heads * options.key_dim, 1.0F, generator);
  load.sweep = {.layer = &load.layer,
                .kv_head = 1,
                .q = load.q.data(),
                .queries = options.queries,
                .rotation = load.rotation.get(),
                .shift_blocks = -13,
                .distance = 500,
                .block_size = kBlockSize,
                .sketches = load.store->sketches(0),
                .slots = load.store->slots(0)};
  return load;
}

// What the sweep may be off by: attention of the queries to sketches as keys, half of whose numbers
// meet half of the features.
AttentionBound BoundOf(const Load& load) {
  const std::int64_t dim = load.layer.key_dim;
  const std::int64_t depth = SketchDepth(dim);
  AttentionNorms norms{.key_dim = dim,
                       .tokens = std::ssize(load.sweep.slots),
                       .scale = static_cast<double>(load.layer.scale)};
  for (auto query = load.q.begin(); query != load.q.end(); query += dim) {
    double squares = 0.0;
    for (auto x = query; x != query + dim; ++x) {
      squares += static_cast<double>(*x) * static_cast<double>(*x);
      norms.rounded_query = std::max(norms.rounded_query, std::abs(static_cast<double>(*x)));
    }
    norms.query = std::max(norms.query, std::sqrt(squares));
  }
  std::vector<float> sketches(static_cast<std::size_t>(SketchTiles::kColumns * depth));
  for (const AlignedBuffer<std::byte>& tile : load.sweep.sketches.tiles) {
    CodecFor(SketchTiles::kType)
        .ReadKeys(tile.data(), SketchTiles::kColumns, depth, sketches.data());
    for (std::int64_t column = 0; column < SketchTiles::kColumns; ++column) {
      double squares = 0.0;  // of the larger of the two numbers of each channel
      for (std::int64_t i = 0; i < dim; ++i) {
        const auto upper = static_cast<double>(
            sketches[static_cast<std::size_t>(i * SketchTiles::kColumns + column)]);
        const auto lower = static_cast<double>(
            sketches[static_cast<std::size_t>((dim + i) * SketchTiles::kColumns + column)]);
        squares += std::max(upper * upper, lower * lower);
      }
      norms.key = std::max(norms.key, std::sqrt(squares));
    }
  }
  for (const float slope : load.layer.alibi_slopes) {
    const auto farthest = static_cast<double>(*load.sweep.distance + load.sweep.queries);
    norms.offset = std::max(norms.offset, std::abs(static_cast<double>(slope)) * farthest);
  }
  return AttentionBound(norms);
}

void ExpectNearReference(const Load& load) {
  std::vector<float> mass(load.sweep.slots.size(), -1.0F);
  std::vector<double> expected(mass.size());
  EstimateMass(load.sweep, mass);
  EstimateMassReference(load.sweep, expected);
  const AttentionBound bound = BoundOf(load);
  const auto rows =
      static_cast<double>(load.sweep.queries * load.layer.query_heads / load.layer.kv_heads);
  for (std::size_t slot = 0; slot < mass.size(); ++slot) {
    ASSERT_NEAR(static_cast<double>(mass[slot]), expected[slot], bound.Mass(expected[slot], rows))
        << "slot " << slot;
    ASSERT_EQ(mass[slot] == 0.0F && !load.sweep.slots[slot].present(),
              !load.sweep.slots[slot].present());
  }
}

TEST(RecallSketch, EqualsItsSlowTwinOnEveryTarget) {
  for (const std::int64_t target : hwy::SupportedAndGeneratedTargets()) {
    hwy::SetSupportedTargetsForTest(target);
    std::mt19937_64 generator(11);
    for (int i = 0; i < RandomCases(20); ++i) {
      SCOPED_TRACE(std::string(hwy::TargetName(target)) + " case " + std::to_string(i));
      const auto pick = [&](std::initializer_list<std::int64_t> from) {
        return *(from.begin() + static_cast<std::ptrdiff_t>(generator() % from.size()));
      };
      ExpectNearReference(MakeLoad({.key_dim = pick({8, 24, 64, 80}),
                                    .group = pick({1, 3, 4, 7}),
                                    .queries = pick({1, 2, 16}),
                                    .blocks = pick({1, 63, 64, 65, 300}),
                                    .rotates = pick({0, 1}) == 1,
                                    .soft_cap = pick({0, 1}) == 1 ? 5.0F : 0.0F,
                                    .alibi = pick({0, 1}) == 1},
                                   &generator));
      if (HasFatalFailure()) return;
    }
  }
  hwy::SetSupportedTargetsForTest(0);
}

// Where a block's keys are equal, the estimate is the exact share of the blocks' mass, whatever
// position each was written at; what is left is that a sketch's numbers are rounded to 1/127 of the
// largest of them.
TEST(RecallSketch, IsExactForEqualKeys) {
  std::mt19937_64 generator(5);
  const LoadOptions options{.key_dim = 32, .group = 2, .queries = 1, .spread = 0.0F};
  const Load load = MakeLoad(options, &generator);
  std::vector<float> mass(load.sweep.slots.size());
  EstimateMass(load.sweep, mass);
  std::vector<double> exact(mass.size(), 0.0);
  const BlockShape& shape = load.store->shape(0);
  std::vector<float> keys(static_cast<std::size_t>(shape.block_size * shape.key_dim));
  for (std::int64_t head = 2; head < 4; ++head) {
    std::vector<double> weights(mass.size(), 0.0);
    double sum = 0.0;
    for (std::size_t slot = 0; slot < mass.size(); ++slot) {
      const StoredBlock& block = load.sweep.slots[slot];
      if (!block.present()) continue;
      CodecFor(shape.key_type)
          .ReadKeys(load.store->data(0, static_cast<std::int64_t>(slot)), shape.block_size,
                    shape.key_dim, keys.data());
      std::vector<double> query(load.q.begin() + head * 32, load.q.begin() + (head + 1) * 32);
      std::vector<double> turned(32);
      RotateVectorReference(load.rotation->rope(),
                            static_cast<double>(-13 * shape.block_size + block.written.value), 32,
                            query.data(), turned.data());
      for (std::int64_t t = 0; t < shape.block_size; ++t) {
        double score = 0.0;
        for (std::size_t i = 0; i < 32; ++i) {
          score +=
              turned[i] * static_cast<double>(keys[i * static_cast<std::size_t>(shape.block_size) +
                                                   static_cast<std::size_t>(t)]);
        }
        weights[slot] += std::exp(score * static_cast<double>(load.layer.scale));
      }
      sum += weights[slot];
    }
    for (std::size_t slot = 0; slot < mass.size(); ++slot) exact[slot] += weights[slot] / sum;
  }
  for (std::size_t slot = 0; slot < mass.size(); ++slot)
    EXPECT_NEAR(static_cast<double>(mass[slot]), exact[slot], 0.03 * exact[slot]);
}

}  // namespace
}  // namespace carousel
