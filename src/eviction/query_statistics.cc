// SPDX-License-Identifier: Apache-2.0
#include "eviction/query_statistics.h"

#include <algorithm>
#include <utility>

#include "base/check.h"

namespace carousel {
namespace {

// The dimensions of a pair.
std::pair<std::size_t, std::size_t> Dimensions(const LayerRope& rope, std::size_t pair) {
  const auto first = static_cast<std::size_t>(rope.first_dim);
  if (rope.pairing == Pairing::kNeighbours) return {first + 2 * pair, first + 2 * pair + 1};
  return {first + pair, first + pair + static_cast<std::size_t>(rope.rotated_dims) / 2};
}

// Multiplies the pairs of a vector whose elements lie `stride` apart.
template <typename Number>
void Turn(const LayerRope& rope, const Rotor& rotor, Number* vector, std::size_t stride) {
  for (std::size_t pair = 0; pair < rotor.size(); ++pair) {
    const auto [x, y] = Dimensions(rope, pair);
    const std::complex<double> turned =
        rotor[pair] * std::complex<double>(vector[x * stride], vector[y * stride]);
    vector[x * stride] = static_cast<Number>(turned.real());
    vector[y * stride] = static_cast<Number>(turned.imag());
  }
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

void TurnKeys(const LayerRope& rope, const Rotor& rotor, std::int64_t block_size, float* keys) {
  for (std::int64_t token = 0; token < block_size; ++token)
    Turn(rope, rotor, keys + token, static_cast<std::size_t>(block_size));
}

void QueryStatistics::Add(const LayerRope& rope, const Rotor& back, const float* query) {
  std::vector<double> q(query, query + key_dim_);
  Turn(rope, back, q.data(), 1);
  for (std::size_t i = 0; i < key_dim_; ++i) {
    sum_[i] += q[i];
    for (std::size_t j = 0; j <= i; ++j) products_[i * key_dim_ + j] += q[i] * q[j];
  }
  ++count_;
}

void QueryStatistics::Clear() {
  count_ = 0;
  std::fill(sum_.begin(), sum_.end(), 0.0);
  std::fill(products_.begin(), products_.end(), 0.0);
}

void QueryStatistics::ExpectedExponents(const LayerRope& rope, const Rotor& rotor, double scale,
                                        std::span<const float> keys,
                                        std::span<double> exponents) const {
  std::fill(exponents.begin(), exponents.end(), 0.0);
  if (count_ == 0) return;
  const std::size_t block_size = exponents.size();
  const auto count = static_cast<double>(count_);
  std::vector<double> mean(key_dim_);
  for (std::size_t i = 0; i < key_dim_; ++i) mean[i] = sum_[i] / count;
  std::vector<double> covariance(key_dim_ * key_dim_);
  for (std::size_t i = 0; i < key_dim_; ++i) {
    for (std::size_t j = 0; j <= i; ++j) {
      const double c = products_[i * key_dim_ + j] / count - mean[i] * mean[j];
      covariance[i * key_dim_ + j] = covariance[j * key_dim_ + i] = c;
    }
  }
  Turn(rope, rotor, mean.data(), 1);
  for (std::size_t i = 0; i < key_dim_; ++i) Turn(rope, rotor, covariance.data() + i * key_dim_, 1);
  for (std::size_t j = 0; j < key_dim_; ++j) Turn(rope, rotor, covariance.data() + j, key_dim_);

  // Row by row of A S A', the products off the diagonal once and doubled.
  std::vector<float> row(block_size);
  for (std::size_t i = 0; i < key_dim_; ++i) {
    const auto diagonal = static_cast<float>(scale * scale / 2 * covariance[i * key_dim_ + i]);
    const float* const own = keys.data() + i * block_size;
    for (std::size_t t = 0; t < block_size; ++t)
      row[t] = static_cast<float>(scale * mean[i]) + diagonal * own[t];
    for (std::size_t j = 0; j < i; ++j) {
      const auto factor = static_cast<float>(scale * scale * covariance[i * key_dim_ + j]);
      const float* const other = keys.data() + j * block_size;
      for (std::size_t t = 0; t < block_size; ++t) row[t] += factor * other[t];
    }
    for (std::size_t t = 0; t < block_size; ++t)
      exponents[t] += static_cast<double>(row[t] * own[t]);
  }
}

}  // namespace carousel
