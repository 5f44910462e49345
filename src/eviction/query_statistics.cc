// SPDX-License-Identifier: Apache-2.0
#include "eviction/query_statistics.h"

#include <algorithm>
#include <utility>

#include "base/check.h"

namespace carousel {
namespace {

constexpr std::size_t kQueriesAtOnce = 8;

// The dimensions of a pair.
std::pair<std::size_t, std::size_t> Dimensions(const LayerRope& rope, std::size_t pair) {
  const auto first = static_cast<std::size_t>(rope.first_dim);
  if (rope.pairing == Pairing::kNeighbours) return {first + 2 * pair, first + 2 * pair + 1};
  return {first + pair, first + pair + static_cast<std::size_t>(rope.rotated_dims) / 2};
}

}  // namespace

Rotor RotorTo(const LayerRope& rope, std::int64_t position) {
  Rotor rotor;
  for (std::int64_t i = 0; i < rope.rotated_dims / 2; ++i) {
    rotor.push_back(std::polar(
        1.0, static_cast<double>(position) * rope.frequencies[static_cast<std::size_t>(i)]));
  }
  return rotor;
}

Rotor AverageRotation(const LayerRope& rope, std::int64_t positions) {
  CAROUSEL_CHECK_GT(positions, 0);
  Rotor average(static_cast<std::size_t>(rope.rotated_dims / 2), 0.0);
  for (std::int64_t position = 0; position < positions; ++position) {
    const Rotor rotor = RotorTo(rope, position);
    for (std::size_t pair = 0; pair < rotor.size(); ++pair)
      average[pair] += rotor[pair] / static_cast<double>(positions);
  }
  return average;
}

void TurnVector(const LayerRope& rope, const Rotor& rotor, float* vector) {
  TurnKeys(rope, rotor, 1, vector);
}

void TurnKeys(const LayerRope& rope, const Rotor& rotor, std::int64_t block_size, float* keys) {
  const auto tokens = static_cast<std::size_t>(block_size);
  for (std::size_t pair = 0; pair < rotor.size(); ++pair) {
    const auto [first, second] = Dimensions(rope, pair);
    const auto re = static_cast<float>(rotor[pair].real());
    const auto im = static_cast<float>(rotor[pair].imag());
    float* const x = keys + first * tokens;
    float* const y = keys + second * tokens;
    for (std::size_t t = 0; t < tokens; ++t) {
      const float turned = re * x[t] - im * y[t];
      y[t] = im * x[t] + re * y[t];
      x[t] = turned;
    }
  }
}

void QueryStatistics::Add(std::span<const float> queries) {
  CAROUSEL_CHECK_EQ(queries.size() % key_dim_, 0U);
  for (std::size_t i = 0; i < queries.size(); ++i)
    sum_[i % key_dim_] += static_cast<double>(queries[i]);
  waiting_.insert(waiting_.end(), queries.begin(), queries.end());
  if (waiting_.size() >= kQueriesAtOnce * key_dim_) AddWaiting();
  count_ += static_cast<std::int64_t>(queries.size() / key_dim_);
}

void QueryStatistics::AddWaiting() {
  AddOuterProducts(waiting_, key_dim_, products_);
  waiting_.clear();
}

void QueryStatistics::Clear() {
  count_ = 0;
  std::fill(sum_.begin(), sum_.end(), 0.0);
  std::fill(products_.begin(), products_.end(), 0.0);
  waiting_.clear();
}

QueryForm QueryStatistics::Expectation(double scale) {
  AddWaiting();
  QueryForm form{.linear = std::vector<float>(key_dim_, 0.0F),
                 .quadratic = std::vector<float>(key_dim_ * key_dim_, 0.0F)};
  if (count_ == 0) return form;
  const auto count = static_cast<double>(count_);
  for (std::size_t i = 0; i < key_dim_; ++i) {
    form.linear[i] = static_cast<float>(scale * sum_[i] / count);
    for (std::size_t j = 0; j < key_dim_; ++j) {
      const double covariance =
          products_[i * key_dim_ + j] / count - sum_[i] / count * (sum_[j] / count);
      form.quadratic[i * key_dim_ + j] = static_cast<float>(scale * scale / 2 * covariance);
    }
  }
  return form;
}

}  // namespace carousel
