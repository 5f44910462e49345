// SPDX-License-Identifier: Apache-2.0
#include "models/dense_attention.h"

#include <algorithm>
#include <cmath>

namespace carousel::testing {

DenseAttention::DenseAttention(const ModelSpec& spec)
    : spec_(spec), keys_(spec.layers.size()), values_(spec.layers.size()) {}

void DenseAttention::Forget() {
  for (auto& keys : keys_) keys.clear();
  for (auto& values : values_) values.clear();
  calls_.clear();
}

void DenseAttention::Attend(std::int64_t layer, std::int64_t tokens, const float* q, const float* k,
                            const float* v, float* out) {
  calls_.push_back(layer);
  const auto index = static_cast<std::size_t>(layer);
  const AttentionLayerSpec& spec = spec_.layers[index];
  const std::int64_t key_width = spec.kv_heads * spec.key_dim;
  keys_[index].insert(keys_[index].end(), k, k + tokens * key_width);
  values_[index].insert(values_[index].end(), v, v + tokens * spec.kv_heads * spec.value_dim);
  const std::int64_t past = std::ssize(keys_[index]) / key_width - tokens;
  for (std::int64_t token = 0; token < tokens; ++token) {
    for (std::int64_t head = 0; head < spec.query_heads; ++head) {
      const std::int64_t row = token * spec.query_heads + head;
      AttendRow({layer, head, past + token}, q + row * spec.key_dim, out + row * spec.value_dim);
    }
  }
}

double DenseAttention::Score(const Row& row, std::int64_t key, const float* q) const {
  const AttentionLayerSpec& spec = spec_.layers[static_cast<std::size_t>(row.layer)];
  const std::int64_t kv_head = row.head / (spec.query_heads / spec.kv_heads);
  const float* k = keys_[static_cast<std::size_t>(row.layer)].data() +
                   (key * spec.kv_heads + kv_head) * spec.key_dim;
  double score = 0.0;
  for (std::int64_t i = 0; i < spec.key_dim; ++i) score += static_cast<double>(q[i]) * k[i];
  score *= spec.scale;
  if (spec.soft_cap > 0.0F) score = spec.soft_cap * std::tanh(score / spec.soft_cap);
  if (!spec.alibi_slopes.empty()) {
    const double slope = spec.alibi_slopes[static_cast<std::size_t>(row.head)];
    score -= slope * static_cast<double>(row.place - key);
  }
  return score;
}

void DenseAttention::AttendRow(const Row& row, const float* q, float* out) const {
  const AttentionLayerSpec& spec = spec_.layers[static_cast<std::size_t>(row.layer)];
  const std::int64_t kv_head = row.head / (spec.query_heads / spec.kv_heads);
  const std::int64_t first =
      spec.sliding_window > 0 ? std::max<std::int64_t>(row.place - spec.sliding_window + 1, 0) : 0;
  std::vector<double> weights;
  for (std::int64_t key = first; key <= row.place; ++key) weights.push_back(Score(row, key, q));
  double largest = *std::max_element(weights.begin(), weights.end());
  const bool has_sink = !spec.sinks.empty();
  const double sink = has_sink ? spec.sinks[static_cast<std::size_t>(row.head)] : 0.0;
  if (has_sink) largest = std::max(largest, sink);
  double mass = has_sink ? std::exp(sink - largest) : 0.0;
  for (double& weight : weights) mass += weight = std::exp(weight - largest);
  const std::vector<float>& values = values_[static_cast<std::size_t>(row.layer)];
  for (std::int64_t i = 0; i < spec.value_dim; ++i) {
    double sum = 0.0;
    for (std::int64_t key = first; key <= row.place; ++key) {
      const std::int64_t at = (key * spec.kv_heads + kv_head) * spec.value_dim + i;
      sum += weights[static_cast<std::size_t>(key - first)] * values[static_cast<std::size_t>(at)];
    }
    out[i] = static_cast<float>(sum / mass);
  }
}

}  // namespace carousel::testing
