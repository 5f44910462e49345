// SPDX-License-Identifier: Apache-2.0
#include "attention/recall_sketch.h"

#include <algorithm>
#include <cmath>
#include <limits>
#include <vector>

#include "base/aligned_buffer.h"
#include "base/check.h"
#include "cache/block_codec.h"
#include "rope/rotate.h"

#undef HWY_TARGET_INCLUDE
#define HWY_TARGET_INCLUDE "attention/recall_sketch.cc"
#include <hwy/foreach_target.h>
// Highway's own headers come after foreach_target.
#include <hwy/highway.h>

#include "attention/code_product-inl.h"
#include "attention/exponential-inl.h"
#include "attention/row_product-inl.h"
#include "attention/work.h"

HWY_BEFORE_NAMESPACE();
namespace carousel {
namespace HWY_NAMESPACE {

// Vectors of at most 16 lanes divide a tile's columns.
static_assert(SketchTiles::kColumns % 16 == 0);
static_assert(SketchTiles::kType == KvType::kInt8);

// Rows of features as CodeProduct wants them.
struct RoundedFeatures {
  AlignedBuffer<std::int16_t> factors;
  AlignedBuffer<float> units;
};

// `depth` is even.
FactorRows RoundFeatures(const float* features, std::int64_t rows, std::int64_t depth,
                         RoundedFeatures* rounded) {
  rounded->factors.Reserve(static_cast<std::size_t>(rows * depth));
  rounded->units.Reserve(static_cast<std::size_t>(rows));
  for (std::int64_t row = 0; row < rows; ++row) {
    const float* from = features + row * depth;
    const float bound = LargestMagnitude(from, nullptr, depth);
    rounded->units.data()[row] =
        RoundToFactors(from, nullptr, depth, bound, rounded->factors.data() + row * depth);
  }
  return {rounded->factors.data(), depth, rounded->units.data()};
}

// estimates[rows, columns] = features[rows, depth] . sketches[depth, columns].
void MultiplySketches(const float* features, std::int64_t rows, const SketchTiles& sketches,
                      float* estimates) {
  thread_local RoundedFeatures scratch;
  const auto tiles = static_cast<std::int64_t>(sketches.tiles.size());
  const std::int64_t depth = sketches.depth;
  constexpr std::int64_t kColumns = SketchTiles::kColumns;
  const bool as_codes = FitsCodeProduct(depth, kColumns);
  const FactorRows rounded =
      as_codes ? RoundFeatures(features, rows, depth, &scratch) : FactorRows{};
  for (std::int64_t tile = 0; tile < tiles; ++tile) {
    const AlignedBuffer<std::byte>* plane = &sketches.tiles[static_cast<std::size_t>(tile)];
    Ahead ahead;
    if (tile + 1 < tiles) ahead = {plane[1].data(), static_cast<std::int64_t>(plane[1].size())};
    const ElementRows codes{reinterpret_cast<const std::int8_t*>(plane->data()), kColumns, kColumns,
                            ahead};
    const ResultRows to{estimates + tile * kColumns, tiles * kColumns, false,
                        ScalesOfInt8(plane->data(), kColumns, depth)};
    if (as_codes) {
      CodeProduct(rounded, rows, depth, codes, to);
    } else {
      RowProduct(LeftRows{features, features, depth}, rows, depth, codes, to);
    }
  }
}

// Turns a row of logarithms into shares of a softmax over them, and adds the shares to `mass`.
// `bias` is added first; somewhere it is finite. All [columns].
void AddShares(const float* bias, std::int64_t columns, float* row, float* mass) {
  const hn::CappedTag<float, 16> d;
  const auto lanes = static_cast<std::int64_t>(hn::Lanes(d));
  auto largest_lanes = hn::Set(d, -std::numeric_limits<float>::infinity());
  for (std::int64_t i = 0; i < columns; i += lanes) {
    const auto value = hn::Add(hn::LoadU(d, row + i), hn::LoadU(d, bias + i));
    hn::StoreU(value, d, row + i);
    largest_lanes = hn::Max(largest_lanes, value);
  }
  const auto shift = hn::Mul(hn::MaxOfLanes(d, largest_lanes), hn::Set(d, -kBinaryDigits));
  auto sums = hn::Zero(d);
  for (std::int64_t i = 0; i < columns; i += lanes) {
    const auto weight = ExponentialOfDifference(d, hn::LoadU(d, row + i), shift);
    hn::StoreU(weight, d, row + i);
    sums = hn::Add(sums, weight);
  }
  const auto share = hn::Set(d, 1.0F / hn::GetLane(hn::SumOfLanes(d, sums)));
  for (std::int64_t i = 0; i < columns; i += lanes) {
    hn::StoreU(hn::MulAdd(hn::LoadU(d, row + i), share, hn::LoadU(d, mass + i)), d, mass + i);
  }
}

}  // namespace HWY_NAMESPACE
}  // namespace carousel
HWY_AFTER_NAMESPACE();

#if HWY_ONCE
namespace carousel {

HWY_EXPORT(MultiplySketches);
HWY_EXPORT(AddShares);

namespace {

constexpr float kNothing = -std::numeric_limits<float>::infinity();

// What sketches are multiplied by, [SketchDepth]: the query, scaled and turned, where it is
// positive, then where it is negative.
void MakeFeatures(const SketchSweep& sweep, const float* query, float* features) {
  const std::int64_t dim = sweep.layer->key_dim;
  for (std::int64_t i = 0; i < dim; ++i) features[i] = query[i] * sweep.layer->scale;
  if (sweep.rotation != nullptr && sweep.shift_blocks != 0) {
    RotateVector(sweep.rotation->rope(), sweep.rotation->row(sweep.shift_blocks), dim, features,
                 features);
  }
  for (std::int64_t i = 0; i < dim; ++i) {
    features[dim + i] = std::min(features[i], 0.0F);
    features[i] = std::max(features[i], 0.0F);
  }
}

// How far a query is from the middle of a slot's block.
float DistanceFrom(const SketchSweep& sweep, std::int64_t query, std::size_t slot) {
  const std::int64_t from_first =
      sweep.distance ? *sweep.distance : sweep.first_query_logical - sweep.slots[slot].logical;
  return static_cast<float>(from_first + query) - static_cast<float>(sweep.block_size - 1) / 2;
}

// Soft cap, then ALiBi.
void Adjust(const SketchSweep& sweep, std::int64_t query, std::int64_t head, std::int64_t columns,
            float* row) {
  const float cap = sweep.layer->soft_cap;
  if (cap > 0.0F) {
    for (std::int64_t i = 0; i < columns; ++i) row[i] = cap * std::tanh(row[i] / cap);
  }
  if (sweep.layer->alibi_slopes.empty()) return;
  const float slope = sweep.layer->alibi_slopes[static_cast<std::size_t>(head)];
  for (std::size_t slot = 0; slot < sweep.slots.size(); ++slot)
    row[slot] -= slope * DistanceFrom(sweep, query, slot);
}

struct SweepScratch {
  AlignedBuffer<float> features;   // [rows, depth]
  AlignedBuffer<float> estimates;  // [rows, columns]
  AlignedBuffer<float> bias;       // [columns]
  AlignedBuffer<float> mass;       // [columns]
};

}  // namespace

void SketchBlock(const BlockHead& block, const RotationTable* rotation, Position written,
                 std::span<float> sketch) {
  const BlockShape& shape = *block.shape;
  const std::int64_t dim = shape.key_dim;
  const std::int64_t block_size = shape.block_size;
  CAROUSEL_CHECK_EQ(static_cast<std::int64_t>(sketch.size()), SketchDepth(dim));
  CAROUSEL_CHECK_EQ(written.value % block_size, 0);
  thread_local AlignedBuffer<float> keys;  // [dim, block_size]
  keys.Reserve(static_cast<std::size_t>(dim * block_size));
  CodecFor(shape.key_type)
      .ReadKeys(block.data + shape.key_offset(block.head), block_size, dim, keys.data());
  if (rotation != nullptr) {
    const std::int64_t back = -written.value / block_size;
    float* const blocks[] = {keys.data()};
    RotateKeyBlocks(*rotation, KeyLayout::kDimensionMajor, 1, dim, blocks,
                    {.multiples = {&back, 1}, .columns = 1});
  }
  for (std::int64_t i = 0; i < dim; ++i) {
    const float* channel = keys.data() + i * block_size;
    float sum = 0.0F;
    for (std::int64_t t = 0; t < block_size; ++t) sum += channel[t];
    const float mean = sum / static_cast<float>(block_size);
    const auto [smallest, largest] = std::minmax_element(channel, channel + block_size);
    const auto toward = [mean](float bound) { return mean + kBound * (bound - mean); };
    sketch[static_cast<std::size_t>(i)] = toward(*largest);
    sketch[static_cast<std::size_t>(dim + i)] = toward(*smallest);
  }
}

void EstimateMass(const SketchSweep& sweep, std::span<float> mass) {
  const AttentionLayerSpec& layer = *sweep.layer;
  const std::int64_t group = GroupOf(layer);
  const std::int64_t rows = sweep.queries * group;
  const std::int64_t depth = sweep.sketches.depth;
  const auto columns =
      static_cast<std::int64_t>(sweep.sketches.tiles.size()) * SketchTiles::kColumns;
  CAROUSEL_CHECK_EQ(mass.size(), sweep.slots.size());
  CAROUSEL_CHECK_LE(static_cast<std::int64_t>(mass.size()), columns);
  CAROUSEL_CHECK_EQ(depth, SketchDepth(layer.key_dim));
  thread_local SweepScratch scratch;
  scratch.features.Reserve(static_cast<std::size_t>(rows * depth));
  scratch.estimates.Reserve(static_cast<std::size_t>(rows * columns));
  scratch.bias.Reserve(static_cast<std::size_t>(columns));
  scratch.mass.Reserve(static_cast<std::size_t>(columns));
  float* bias = scratch.bias.data();
  std::fill_n(bias, columns, kNothing);
  bool empty = true;
  for (std::size_t slot = 0; slot < sweep.slots.size(); ++slot) {
    if (!sweep.slots[slot].present()) continue;
    bias[slot] = 0.0F;  // all blocks are full: their number of tokens is a common factor
    empty = false;
  }
  if (empty) return std::fill(mass.begin(), mass.end(), 0.0F);
  for (std::int64_t row = 0; row < rows; ++row) {
    const std::int64_t head = sweep.kv_head * group + row % group;
    MakeFeatures(sweep, sweep.q + (row / group * layer.query_heads + head) * layer.key_dim,
                 scratch.features.data() + row * depth);
  }
  HWY_DYNAMIC_DISPATCH(MultiplySketches)
  (scratch.features.data(), rows, sweep.sketches, scratch.estimates.data());
  std::fill_n(scratch.mass.data(), columns, 0.0F);
  for (std::int64_t row = 0; row < rows; ++row) {
    float* estimates = scratch.estimates.data() + row * columns;
    Adjust(sweep, row / group, sweep.kv_head * group + row % group, columns, estimates);
    HWY_DYNAMIC_DISPATCH(AddShares)
    (bias, columns, estimates, scratch.mass.data());
  }
  std::copy_n(scratch.mass.data(), mass.size(), mass.data());
}

void EstimateMassReference(const SketchSweep& sweep, std::span<double> mass) {
  const AttentionLayerSpec& layer = *sweep.layer;
  const std::int64_t group = GroupOf(layer);
  const std::int64_t dim = layer.key_dim;
  const auto size = static_cast<std::size_t>(dim);
  // [slots][depth]
  std::vector<std::vector<double>> sketches;
  for (const AlignedBuffer<std::byte>& tile : sweep.sketches.tiles) {
    std::vector<float> floats(
        static_cast<std::size_t>(SketchTiles::kColumns * sweep.sketches.depth));
    CodecFor(SketchTiles::kType)
        .ReadKeys(tile.data(), SketchTiles::kColumns, sweep.sketches.depth, floats.data());
    for (std::int64_t column = 0; column < SketchTiles::kColumns; ++column) {
      std::vector<double>& sketch = sketches.emplace_back();
      for (std::int64_t i = 0; i < sweep.sketches.depth; ++i) {
        sketch.push_back(static_cast<double>(
            floats[static_cast<std::size_t>(i * SketchTiles::kColumns + column)]));
      }
    }
  }
  std::fill(mass.begin(), mass.end(), 0.0);
  for (std::int64_t query = 0; query < sweep.queries; ++query) {
    for (std::int64_t head = sweep.kv_head * group; head < (sweep.kv_head + 1) * group; ++head) {
      const float* from = sweep.q + (query * layer.query_heads + head) * dim;
      std::vector<double> q(from, from + dim);
      for (double& x : q) x *= static_cast<double>(layer.scale);
      if (sweep.rotation != nullptr) {
        const std::vector<double> plain = q;
        RotateVectorReference(sweep.rotation->rope(),
                              static_cast<double>(sweep.shift_blocks * sweep.block_size), dim,
                              plain.data(), q.data());
      }
      std::vector<double> weights(sweep.slots.size(), 0.0);
      double sum = 0.0;
      for (std::size_t slot = 0; slot < sweep.slots.size(); ++slot) {
        if (!sweep.slots[slot].present()) continue;
        double score = 0.0;
        for (std::size_t i = 0; i < size; ++i) {
          score += q[i] * sketches[slot][q[i] > 0.0 ? i : size + i];
        }
        if (layer.soft_cap > 0.0F) {
          const auto cap = static_cast<double>(layer.soft_cap);
          score = cap * std::tanh(score / cap);
        }
        if (!layer.alibi_slopes.empty()) {
          const std::int64_t from_first =
              sweep.distance.value_or(sweep.first_query_logical - sweep.slots[slot].logical);
          score -= static_cast<double>(layer.alibi_slopes[static_cast<std::size_t>(head)]) *
                   (static_cast<double>(from_first + query) -
                    static_cast<double>(sweep.block_size - 1) / 2);
        }
        weights[slot] = std::exp(score);
        sum += weights[slot];
      }
      for (std::size_t slot = 0; slot < weights.size(); ++slot) mass[slot] += weights[slot] / sum;
    }
  }
}

}  // namespace carousel
#endif
