// SPDX-License-Identifier: Apache-2.0
// From logits to the next token.
#pragma once

#include <cstdint>
#include <deque>
#include <optional>
#include <random>
#include <span>
#include <unordered_map>
#include <unordered_set>
#include <vector>

#include "carousel/engine.h"
#include "carousel/types.h"

namespace carousel {

// One request's sampling: penalties, then temperature, top-k, top-p, min-p in that order (as
// llama.cpp and Hugging Face transformers apply them), then a draw. The same seed and logits give
// the same tokens on every machine: the generator and the mapping to [0, 1) are fixed here, not
// left to the standard library.
class Sampler {
 public:
  // `params` are valid.
  Sampler(const SamplingParams& params, std::int64_t vocabulary_size);

  // A token that no penalty is to touch, however often it comes. Before it is seen.
  void Exempt(TokenId token) { exempt_.insert(token); }
  // A token of the context that repetition_penalty shall see (prompt and answer alike).
  void See(TokenId token);
  // Draws from `logits` [vocabulary_size], or takes `forced`; counts the token as generated and
  // seen.
  SampledToken Sample(std::span<const float> logits, std::optional<TokenId> forced = std::nullopt);

 private:
  struct Candidate {
    float logit;
    TokenId token;
  };
  void ApplyPenalties(std::span<float> logits) const;
  TokenId Draw(std::span<const float> logits);
  double Uniform();  // in [0, 1)

  SamplingParams params_;
  std::mt19937_64 generator_;
  std::unordered_set<TokenId> exempt_;
  std::deque<TokenId> window_;                               // the last penalty_window tokens
  std::unordered_map<TokenId, std::int64_t> window_counts_;  // of window_
  std::unordered_map<TokenId, std::int64_t> generated_;      // by this request
  std::vector<float> adjusted_;                              // [vocabulary_size]
  std::vector<Candidate> candidates_;
};

}  // namespace carousel
