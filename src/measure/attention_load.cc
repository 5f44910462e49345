// SPDX-License-Identifier: Apache-2.0
#include "measure/attention_load.h"

#include <algorithm>
#include <random>

#include "base/check.h"

namespace carousel {
namespace {

std::vector<float> Normal(std::int64_t count, std::mt19937& generator) {
  std::normal_distribution<float> normal;
  std::vector<float> values(static_cast<std::size_t>(count));
  for (float& value : values) value = normal(generator);
  return values;
}

}  // namespace

double AttentionShape::FlopsPerLayer() const {
  // Query i of the last `queries` tokens sees context - queries + i + 1 tokens.
  const double seen_by_all =
      static_cast<double>(queries) *
      (static_cast<double>(context) - static_cast<double>(queries - 1) / 2.0);
  return seen_by_all * 2.0 *
         static_cast<double>(layer.query_heads * (layer.key_dim + layer.value_dim));
}

AttentionShape DefaultAttentionShape() {
  return {
      .layer = {.query_heads = 9, .kv_heads = 3, .key_dim = 64, .value_dim = 64, .scale = 0.125F},
      .layers = 30};
}

std::int64_t AttentionLoad::Copies(std::int64_t bytes_per_layer) const {
  const std::int64_t bytes_of_model = bytes_per_layer * shape.layers;
  return std::max<std::int64_t>(1, (least_bytes + bytes_of_model - 1) / bytes_of_model);
}

AttentionLoad MakeAttentionLoad(const AttentionShape& shape, std::int64_t least_bytes) {
  const AttentionLayerSpec& layer = shape.layer;
  CAROUSEL_CHECK_GT(shape.layers, 0);
  CAROUSEL_CHECK_GT(shape.queries, 0);
  CAROUSEL_CHECK_LE(shape.queries, shape.context);
  CAROUSEL_CHECK_EQ(shape.context % shape.block_size, 0);
  std::mt19937 generator(1);
  AttentionLoad load{.shape = shape, .least_bytes = least_bytes};
  load.q = Normal(shape.queries * layer.query_heads * layer.key_dim, generator);
  load.k = Normal(shape.context * layer.kv_heads * layer.key_dim, generator);
  load.v = Normal(shape.context * layer.kv_heads * layer.value_dim, generator);
  return load;
}

ReferenceOutput ReferenceOf(const AttentionLoad& load) {
  const AttentionLayerSpec& layer = load.shape.layer;
  const auto row = [](const std::vector<float>& rows, std::int64_t index, std::int64_t width) {
    const auto begin = rows.begin() + index * width;
    return std::vector<double>(begin, begin + width);
  };
  std::vector<ReferenceToken> tokens;
  for (std::int64_t t = 0; t < load.shape.context; ++t)
    tokens.push_back({Position{t}, Position{t}, Position{t},
                      row(load.k, t, layer.kv_heads * layer.key_dim),
                      row(load.v, t, layer.kv_heads * layer.value_dim)});
  std::vector<ReferenceQuery> queries;
  for (std::int64_t i = 0; i < load.shape.queries; ++i) {
    const Position at{load.shape.context - load.shape.queries + i};
    queries.push_back({at, at, at, row(load.q, i, layer.query_heads * layer.key_dim)});
  }
  return ReferenceAttention(layer, {}, tokens, queries);
}

}  // namespace carousel
