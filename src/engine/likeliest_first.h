// SPDX-License-Identifier: Apache-2.0
// The words of a row of logits, likeliest first, put in order only as far as somebody asks.
#pragma once

#include <cstddef>
#include <vector>

#include "engine/adjusted_logits.h"

namespace carousel {

// Words are taken from the row in slices of logits, from the largest down, and sorted in growing
// parts. A word of logit -infinity is none.
class LikeliestFirst {
 public:
  // Begins with the words down to 6 `temperature`s below the largest logit, unsorted; later slices
  // reach further each, down to `at_least`. `logits` outlive this until the next Begin, and their
  // largest reaches `at_least`.
  void Begin(const AdjustedLogits* logits, double temperature, float at_least);
  // Whether there are more than `rank` words that reach `at_least`; they are then sorted so far.
  bool Has(std::size_t rank);
  // Has(rank) has been true.
  const RankedWord& operator[](std::size_t rank) const { return words_[rank]; }

  // What has been taken from the row, sorted or not, and the logit that all of it reaches and
  // nothing else does.
  const std::vector<RankedWord>& taken() const { return words_; }
  float taken_down_to() const { return taken_down_to_; }

 private:
  void TakeMore();
  void SortMore();

  const AdjustedLogits* logits_ = nullptr;
  float at_least_ = 0.0F;
  double unit_ = 1.0;   // logits
  double reach_ = 0.0;  // of the next slice below the largest logit, in units
  float taken_down_to_ = 0.0F;
  std::size_t sorted_ = 0;
  std::vector<RankedWord> words_;  // the first sorted_ in order, the others less likely
};

}  // namespace carousel
