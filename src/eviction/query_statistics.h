// SPDX-License-Identifier: Apache-2.0
// Mean and covariance of one head's queries before RoPE, gathered online, and what they say of
// keys.
#pragma once

#include <complex>
#include <cstdint>
#include <span>
#include <vector>

#include "eviction/query_form.h"
#include "rope/rope_spec.h"

namespace carousel {

// One complex number per pair of a LayerRope: what the pair, read as x + iy, is multiplied by. A
// rotation has numbers of length 1; an average of rotations has shorter ones.
using Rotor = std::vector<std::complex<double>>;

// R(position).
Rotor RotorTo(const LayerRope& rope, std::int64_t position);
// The mean of R(0) ... R(positions - 1). `positions` > 0.
Rotor AverageRotation(const LayerRope& rope, std::int64_t positions);

// Multiplies one vector, [key_dim].
void TurnVector(const LayerRope& rope, const Rotor& rotor, float* vector);
// Multiplies a block's keys, [key_dim, block_size].
void TurnKeys(const LayerRope& rope, const Rotor& rotor, std::int64_t block_size, float* keys);

class QueryStatistics {
 public:
  explicit QueryStatistics(std::int64_t key_dim)
      : key_dim_(static_cast<std::size_t>(key_dim)),
        sum_(key_dim_, 0.0),
        products_(key_dim_ * key_dim_, 0.0) {}

  // Queries at position 0: [n, key_dim]. Their products are added up a few queries at a time: the
  // sums of one head fill a first-level cache, and decode brings a query at a time.
  void Add(std::span<const float> queries);
  void Clear();
  std::int64_t count() const { return count_; }
  std::int64_t bytes() const {
    return static_cast<std::int64_t>((sum_.size() + products_.size()) * sizeof(double) +
                                     waiting_.size() * sizeof(float));
  }

  // What exp(scale q . k) is expected to be for a key k, as a logarithm: scale m . k + scale^2 / 2
  // k' S k with m the mean and S the covariance. All zeros before any query.
  QueryForm Expectation(double scale);

 private:
  void AddWaiting();

  std::size_t key_dim_;
  std::int64_t count_ = 0;
  std::vector<double> sum_;       // [key_dim]
  std::vector<double> products_;  // [key_dim, key_dim]: of q q', but for those that wait
  std::vector<float> waiting_;    // [n, key_dim]
};

}  // namespace carousel
