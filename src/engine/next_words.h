// SPDX-License-Identifier: Apache-2.0
// The words that a beam can go on with, likeliest first.
#pragma once

#include <cstdint>
#include <map>
#include <set>
#include <span>
#include <vector>

#include "engine/adjusted_logits.h"
#include "engine/likeliest_first.h"
#include "engine/logits.h"

namespace carousel {

struct NextWord {
  TokenId token = 0;
  double logprob = 0.0;  // of the model
  double penalty = 0.0;  // to be taken from it
};

// Adds the tokens that would end a run of `size` tokens which `prompt` and `answer`, one behind the
// other, have had before. `size` > 0.
void AddRepeats(std::span<const TokenId> prompt, std::span<const TokenId> answer, std::int64_t size,
                std::set<TokenId>* banned);

// Keeps its memory from one beam to the next.
class NextWords {
 public:
  // Of `logits`, which give a distribution: the likeliest words, less their penalties, without
  // those that are banned or impossible, down to the one that makes `enough` words which are not in
  // `ends`. Fewer where there are no more.
  std::vector<NextWord> Best(std::span<const float> logits, const std::set<TokenId>& banned,
                             const std::map<TokenId, double>& penalties,
                             const std::set<TokenId>& ends, std::int64_t enough);

 private:
  LogitsSummary summary_;
  std::vector<Adjustment> adjustments_;
  LikeliestFirst words_;
};

}  // namespace carousel
