// SPDX-License-Identifier: Apache-2.0
// Passes over a row of logits, vectorised and dispatched at run time.
#pragma once

#include <cmath>
#include <cstdint>
#include <limits>
#include <span>
#include <vector>

#include "carousel/types.h"

namespace carousel {

// Rows are read in blocks of so many words, which the first-level cache holds.
inline constexpr std::int64_t kLogitsBlock = 1024;

// What one pass over a row finds.
struct LogitsSummary {
  // Whether the row gives a distribution: no logit is NaN or +infinity, nor are all -infinity.
  bool usable() const { return !std::isnan(log_sum_exp); }

  // log(sum(exp(logits))), -infinity counting as probability 0; NaN: the row is not usable, and the
  // rest means nothing.
  double log_sum_exp = std::numeric_limits<double>::quiet_NaN();
  TokenId likeliest = 0;             // the first of the largest
  float largest = 0.0F;              // its logit
  std::vector<float> block_largest;  // [blocks], of kLogitsBlock words each, the last maybe fewer
};

// Not empty. `summary` is reused, so that a row takes no new memory.
void Summarise(std::span<const float> logits, LogitsSummary* summary);

// LogitsSummary::log_sum_exp alone.
double LogSumExp(std::span<const float> logits) noexcept;

// -infinity for none. No logit is NaN.
float Largest(std::span<const float> logits) noexcept;

// The first of the largest; 0 for none.
TokenId ArgMax(std::span<const float> logits) noexcept;

// Sum of exp((logit - largest) / temperature) over the logits that are < below; none of those is
// above `largest`. Its relative error is below kSumExpError for what weighs more than e^-30; what
// weighs less is off by less than 1e-18 a word.
double SumExpBelow(std::span<const float> logits, float largest, double temperature,
                   float below) noexcept;
inline constexpr double kSumExpError = 1e-5;

// Writes the indices of the logits in [at_least, below), ascending, and returns how many there are.
// `logits` are at most kLogitsBlock, and `found` has room for as many.
std::int64_t FindLogits(std::span<const float> logits, float at_least, float below,
                        std::int32_t* found) noexcept;

}  // namespace carousel
