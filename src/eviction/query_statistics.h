// SPDX-License-Identifier: Apache-2.0
// Mean and covariance of one head's queries before RoPE, gathered online, and what they say of
// keys.
#pragma once

#include <complex>
#include <cstdint>
#include <span>
#include <vector>

#include "rope/rope_spec.h"

namespace carousel {

// One complex number per pair of a LayerRope: what the pair, read as x + iy, is multiplied by. A
// rotation has numbers of length 1; an average of rotations has shorter ones.
using Rotor = std::vector<std::complex<double>>;

// R(position).
Rotor RotorTo(const LayerRope& rope, std::int64_t position);
// The mean of R(0) ... R(positions - 1). `positions` > 0.
Rotor AverageRotation(const LayerRope& rope, std::int64_t positions);

// Multiplies a block's keys, [key_dim, block_size].
void TurnKeys(const LayerRope& rope, const Rotor& rotor, std::int64_t block_size, float* keys);

class QueryStatistics {
 public:
  explicit QueryStatistics(std::int64_t key_dim)
      : key_dim_(static_cast<std::size_t>(key_dim)),
        sum_(key_dim_, 0.0),
        products_(key_dim_ * key_dim_, 0.0) {}

  // One query, which `back` takes to position 0. [key_dim]
  void Add(const LayerRope& rope, const Rotor& back, const float* query);
  void Clear();
  std::int64_t count() const { return count_; }

  // exponents[t] = scale (A m) . k_t + scale^2 / 2 k_t' A S A' k_t for the keys of a block,
  // [key_dim, block_size], with A the rotor, m the mean and S the covariance. 0 before any query.
  void ExpectedExponents(const LayerRope& rope, const Rotor& rotor, double scale,
                         std::span<const float> keys, std::span<double> exponents) const;

 private:
  std::size_t key_dim_;
  std::int64_t count_ = 0;
  std::vector<double> sum_;       // [key_dim]
  std::vector<double> products_;  // [key_dim, key_dim]: of q q', the lower triangle
};

}  // namespace carousel
