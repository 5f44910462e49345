// SPDX-License-Identifier: Apache-2.0
// What a request's penalties do to the logits: to those few words that have been seen.
#pragma once

#include <cstdint>
#include <deque>
#include <span>
#include <unordered_set>
#include <vector>

#include "carousel/request.h"
#include "carousel/types.h"
#include "engine/adjusted_logits.h"

namespace carousel {

// Repetition penalty first (Keskar et al. 2019: positive logits are divided, others multiplied),
// then presence and frequency penalty (subtracted).
class Penalties {
 public:
  // `params` are valid.
  explicit Penalties(const SamplingParams& params);

  // A token that no penalty is to touch, however often it comes. Before it is seen.
  void Exempt(TokenId token) { exempt_.insert(token); }
  // A token of the context that repetition_penalty shall see (prompt and answer alike).
  void See(TokenId token);
  // A token of the answer, for presence_penalty and frequency_penalty.
  void CountGenerated(TokenId token);
  // What becomes of the logits, by token, ascending. Finite logits stay finite, and -infinity
  // stays.
  void Adjust(std::span<const float> logits, std::vector<Adjustment>* adjustments) const;

 private:
  struct Counts {
    TokenId token;
    std::int64_t in_window = 0;
    std::int64_t generated = 0;
  };
  Counts& CountsOf(TokenId token);

  bool has_repetition_;
  bool has_generated_;
  float repetition_;
  double presence_;
  double frequency_;
  std::int64_t window_size_;
  std::unordered_set<TokenId> exempt_;
  std::deque<TokenId> window_;  // the last window_size_ tokens
  std::vector<Counts> counts_;  // of tokens that count, ascending
};

}  // namespace carousel
