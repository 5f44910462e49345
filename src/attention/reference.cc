// SPDX-License-Identifier: Apache-2.0
#include "attention/reference.h"

#include <algorithm>
#include <cmath>
#include <limits>

#include "rope/rotate.h"

namespace carousel {
namespace {

// One head's vector, turned from where it was written to where it stands.
std::vector<double> Place(const LayerRope& rope, const std::vector<double>& vector,
                          std::int64_t head, std::int64_t dim, Position written,
                          Position attention) {
  const double* from = vector.data() + head * dim;
  std::vector<double> plain(static_cast<std::size_t>(dim));
  std::vector<double> placed(static_cast<std::size_t>(dim));
  RotateVectorReference(rope, -static_cast<double>(written.value), dim, from, plain.data());
  RotateVectorReference(rope, static_cast<double>(attention.value), dim, plain.data(),
                        placed.data());
  return placed;
}

bool Visible(const AttentionLayerSpec& layer, const ReferenceQuery& query,
             const ReferenceToken& token) {
  const std::int64_t distance = query.logical - token.logical;
  return distance >= 0 && (layer.sliding_window == 0 || distance < layer.sliding_window);
}

double Score(const AttentionLayerSpec& layer, std::int64_t head, const std::vector<double>& query,
             const std::vector<double>& key, std::int64_t distance) {
  double dot = 0.0;
  for (std::size_t i = 0; i < query.size(); ++i) dot += query[i] * key[i];
  double score = dot * static_cast<double>(layer.scale);
  if (layer.soft_cap > 0) {
    const auto cap = static_cast<double>(layer.soft_cap);
    score = cap * std::tanh(score / cap);
  }
  if (!layer.alibi_slopes.empty()) {
    score -= static_cast<double>(layer.alibi_slopes[static_cast<std::size_t>(head)]) *
             static_cast<double>(distance);
  }
  return score;
}

// In place: scores to probabilities. A sink takes its part and gives nothing.
void Softmax(std::vector<double>& scores, const double* sink) {
  double largest = sink != nullptr ? *sink : -std::numeric_limits<double>::infinity();
  for (const double score : scores) largest = std::max(largest, score);
  double sum = sink != nullptr ? std::exp(*sink - largest) : 0.0;
  for (double& score : scores) {
    score = std::exp(score - largest);
    sum += score;
  }
  for (double& score : scores) score /= sum;
}

}  // namespace

ReferenceOutput ReferenceAttention(const AttentionLayerSpec& layer, const LayerRope& rope,
                                   const std::vector<ReferenceToken>& tokens,
                                   const std::vector<ReferenceQuery>& queries) {
  const std::int64_t group = layer.query_heads / layer.kv_heads;
  ReferenceOutput result;
  result.out.assign(queries.size() * static_cast<std::size_t>(layer.query_heads * layer.value_dim),
                    0.0);
  result.magnitude.assign(result.out.size(), 0.0);
  result.mass.assign(queries.size() * tokens.size(), 0.0);
  std::vector<std::vector<double>> keys;  // of the query head's KV head
  for (std::int64_t head = 0; head < layer.query_heads; ++head) {
    const std::int64_t kv_head = head / group;
    if (head % group == 0) keys.clear();
    for (std::size_t t = keys.size(); t < tokens.size(); ++t) {
      keys.push_back(Place(rope, tokens[t].key, kv_head, layer.key_dim, tokens[t].written,
                           tokens[t].attention));
    }
    for (std::size_t i = 0; i < queries.size(); ++i) {
      const auto query = Place(rope, queries[i].query, head, layer.key_dim, queries[i].written,
                               queries[i].attention);
      std::vector<double> weights;
      for (std::size_t t = 0; t < tokens.size(); ++t) {
        weights.push_back(
            Visible(layer, queries[i], tokens[t])
                ? Score(layer, head, query, keys[t], queries[i].attention - tokens[t].attention)
                : -std::numeric_limits<double>::infinity());
      }
      const double sink = layer.sinks.empty()
                              ? 0.0
                              : static_cast<double>(layer.sinks[static_cast<std::size_t>(head)]);
      Softmax(weights, layer.sinks.empty() ? nullptr : &sink);
      const std::int64_t first =
          (static_cast<std::int64_t>(i) * layer.query_heads + head) * layer.value_dim;
      double* out = result.out.data() + first;
      double* magnitude = result.magnitude.data() + first;
      for (std::size_t t = 0; t < tokens.size(); ++t) {
        result.mass[i * tokens.size() + t] += weights[t];
        const double* value = tokens[t].value.data() + kv_head * layer.value_dim;
        for (std::int64_t d = 0; d < layer.value_dim; ++d) {
          out[d] += weights[t] * value[d];
          magnitude[d] += weights[t] * std::abs(value[d]);
        }
      }
    }
  }
  return result;
}

}  // namespace carousel
