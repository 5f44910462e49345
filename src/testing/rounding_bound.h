// SPDX-License-Identifier: Apache-2.0
// How far float32 may be from exact numbers: what tests allow, from norms, numbers of additions and
// u = 2^-24, the largest part of itself that a number loses when it is rounded.
//
// A sum's bound is the worst case. Attention's, which would be hundreds of times too wide so, takes
// roundings as independent and of mean 0 (Higham and Mary 2019), u / sqrt(3) by their standard
// deviation at most, and queries and keys as random, and allows six deviations:
//
//   score   S = scale |q| |k|, d numbers long. The i-th partial sum is about S sqrt(i) / d, and
//   what
//           rounding takes of all d adds up to u S / sqrt(6). Factors that were rounded m times add
//           u S sqrt(m / (3 d)): 4 roundings for what comes in and for the scale, 4 for each
//           rotation. Numbers of the query that are held in units of 1 / 32767 of the largest
//           possible, sqrt(2) times its largest, add unit / sqrt(12) scale |k|.
//             E = 6 u S (1 / sqrt(6) + sqrt(m / (3 d))) + 6 unit / sqrt(12) scale |k|
//   weight  Its score's error and the mean one of all scores, by which the sum is off: 2 E. Scores
//           rounded on their way to the exponential: 4 u (S + offset). The exponential itself
//           (exponential-inl.h), once in the weight and once in the sum: 10 u; and 6 u |x| at x
//           below the largest score, where x is at most ln(1 / p) for a weight p. A sum of n
//           numbers of one sign: 6 u sqrt(n) / 3.
//             W(p) = 2 E + u (4 (S + offset) + 10 + 2 sqrt(n) + 6 ln(1 / p)), as a part of p
//   output  Sum of p |v| times W at the mean of ln(1 / p), which is at most ln n, and as much again
//           as the last sum's for the products' own. Weights in units of 1 / 32767 of a block's
//           largest: 6 / (32767 sqrt(12)) |column of v over the block's tokens|.
#pragma once

#include <algorithm>
#include <cmath>
#include <cstdint>

namespace carousel {

inline constexpr double kUnitRoundoff = 0x1.0p-24;

// Of a result that `roundings` operations lead to, each of a number of `magnitude` at most: the sum
// of the terms' magnitudes. The worst case, to first order.
constexpr double RoundingBound(std::int64_t roundings, double magnitude) {
  return static_cast<double>(roundings) * kUnitRoundoff * magnitude;
}

// Of one call: the largest of all its heads.
struct AttentionNorms {
  std::int64_t key_dim = 0;
  std::int64_t tokens = 0;     // that a query sees
  std::int64_t rotations = 1;  // of a query or a key, one after another, in float32
  double scale = 0.0;
  double query = 0.0;   // |q|
  double key = 0.0;     // |k|
  double offset = 0.0;  // what ALiBi takes off scores that weigh most
  // Where queries meet int8 keys: their largest number; else 0.
  double rounded_query = 0.0;
  // Where weights meet int8 values: the length of a channel of a block's values; else 0.
  double rounded_values = 0.0;
};

class AttentionBound {
 public:
  explicit AttentionBound(const AttentionNorms& norms) {
    const double score = norms.scale * norms.query * norms.key;
    const auto roundings = static_cast<double>(4 + 4 * norms.rotations);
    const double in_products =
        score *
        (1 / std::sqrt(6.0) + std::sqrt(roundings / static_cast<double>(3 * norms.key_dim)));
    const double unit = std::sqrt(2.0) * norms.rounded_query / kLargestFactor;
    const double error = kDeviations * (kUnitRoundoff * in_products +
                                        unit / std::sqrt(12.0) * norms.scale * norms.key);
    sum_ = 2 * kUnitRoundoff * std::sqrt(static_cast<double>(norms.tokens));
    weight_ = 2 * error + kUnitRoundoff * (4 * (score + norms.offset) + 10) + sum_;
    log_tokens_ = std::log(static_cast<double>(std::max<std::int64_t>(norms.tokens, 1)));
    values_ = kDeviations / (kLargestFactor * std::sqrt(12.0)) * norms.rounded_values;
  }

  // Of the sum of `rows` weights, one of each softmax.
  double Mass(double mass, double rows) const {
    if (mass <= 0.0) return rows * kSmallest;
    return mass * (weight_ + kBelowLargest * std::log(std::max(1.0, rows / mass))) +
           rows * kSmallest;
  }
  // Of an output; `magnitude` is the sum of its weights times the values' magnitudes.
  double Output(double magnitude) const {
    return magnitude * (weight_ + kBelowLargest * log_tokens_ + sum_) + values_ + kSmallest;
  }

 private:
  static constexpr double kDeviations = 6.0;
  static constexpr double kLargestFactor = 32767.0;
  static constexpr double kBelowLargest = 6 * kUnitRoundoff;
  static constexpr double kSmallest = 0x1.0p-126;  // smaller weights may be 0

  double weight_ = 0.0;  // of the largest weight, as a part of it
  double sum_ = 0.0;
  double values_ = 0.0;
  double log_tokens_ = 0.0;
};

}  // namespace carousel
