// SPDX-License-Identifier: Apache-2.0
// A row of logits in which a few are replaced by others, read without a copy of the row.
#pragma once

#include <compare>
#include <cstddef>
#include <cstdint>
#include <span>
#include <vector>

#include "carousel/types.h"
#include "engine/logits.h"

namespace carousel {

// The logit that takes the place of a word's own.
struct Adjustment {
  TokenId token = 0;
  float logit = 0.0F;
};

// A sum that lies within `error` of `sum`.
struct BoundedSum {
  double sum = 0.0;
  double error = 0.0;
};

// A word with its logit, in one number, of which the larger is the likelier word's; of words with
// equal logits it is the smaller token's.
class RankedWord {
 public:
  RankedWord() = default;
  // `logit` is not NaN.
  RankedWord(float logit, TokenId token);
  float logit() const;
  TokenId token() const;
  friend auto operator<=>(RankedWord, RankedWord) = default;

 private:
  std::uint64_t bits_ = 0;
};

// Blocks in which nothing is replaced are read where they lie; one in which something is, from a
// copy that stays in the first-level cache.
class AdjustedLogits {
 public:
  // All of them outlive this. `summary` is of `logits` and usable; `adjustments` are ascending by
  // token, each token once, and none is NaN or +infinity.
  AdjustedLogits(std::span<const float> logits, const LogitsSummary& summary,
                 std::span<const Adjustment> adjustments);

  std::size_t size() const { return logits_.size(); }
  // Of all words.
  float largest() const { return largest_; }
  // The first of the largest.
  TokenId Likeliest() const;
  // Appends the words with at_least <= logit < below, by token.
  void AppendWords(float at_least, float below, std::vector<RankedWord>* words) const;
  // Sum of exp((logit - largest()) / temperature) over the words with logit < below, which is not
  // above largest(): in single precision, and in double precision at twenty times the cost.
  BoundedSum SumBelow(float below, double temperature) const;
  double ExactSumBelow(float below, double temperature) const;

 private:
  double Weight(float logit, double temperature) const;
  // Calls function(first token, logits) for the blocks of which wanted(a bound of their logits).
  template <typename Wanted, typename Function>
  void ForEachBlock(const Wanted& wanted, const Function& function) const;

  std::span<const float> logits_;
  std::span<const float> block_largest_;
  std::span<const Adjustment> adjustments_;
  float largest_;
};

}  // namespace carousel
