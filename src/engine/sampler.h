// SPDX-License-Identifier: Apache-2.0
// From logits to the next token.
#pragma once

#include <cstdint>
#include <optional>
#include <random>
#include <span>
#include <vector>

#include "carousel/request.h"
#include "carousel/types.h"
#include "engine/adjusted_logits.h"
#include "engine/likeliest_first.h"
#include "engine/logits.h"
#include "engine/penalties.h"

namespace carousel {

// One request's sampling: penalties, then temperature, top-k, top-p, min-p in that order (as
// llama.cpp and Hugging Face transformers apply them), then a draw. top-p's share is of the k
// likeliest words' probability where top-k is on, else of the whole vocabulary's; min-p's is of the
// likeliest word's. Of equal words the one with the smaller id is the likelier.
//
// The draw is by one number u in [0, 1): the first word, likeliest first, up to which the kept
// words have more than the share u of what they have together. The same seed and logits give the
// same tokens on every machine: the generator and the mapping to [0, 1) are fixed here, not left to
// the standard library, and sums in single precision decide nothing that is closer than their
// error.
class Sampler {
 public:
  // `params` are valid.
  explicit Sampler(const SamplingParams& params);

  // A token that no penalty is to touch, however often it comes. Before it is seen.
  void Exempt(TokenId token) { penalties_.Exempt(token); }
  // A token of the context that repetition_penalty shall see (prompt and answer alike).
  void See(TokenId token) { penalties_.See(token); }
  // Draws from `logits` [vocabulary_size], or takes `forced`. `summary` is of `logits`, and usable.
  // Where it throws, it has drawn nothing.
  SampledToken Choose(std::span<const float> logits, const LogitsSummary& summary,
                      std::optional<TokenId> forced = std::nullopt);
  // Counts a chosen token as generated and seen.
  void Accept(TokenId token);
  // Both.
  SampledToken Sample(std::span<const float> logits, const LogitsSummary& summary,
                      std::optional<TokenId> forced = std::nullopt);

 private:
  class TotalWeight;
  TokenId Draw(const AdjustedLogits& logits);
  SampledToken ChooseUnguarded(std::span<const float> logits, const LogitsSummary& summary,
                               std::optional<TokenId> forced);
  TokenId DrawFromAll(const AdjustedLogits& logits);
  std::size_t CountKept(const AdjustedLogits& logits);
  double WeightOf(RankedWord word, float largest) const;
  bool HasTopK(const AdjustedLogits& logits) const;
  float LeastLogit(const AdjustedLogits& logits) const;
  double WeightAt(std::size_t rank, float largest);
  double Uniform();  // in [0, 1)

  SamplingParams params_;
  std::mt19937_64 generator_;
  Penalties penalties_;
  std::vector<Adjustment> adjustments_;  // of the row at hand
  LikeliestFirst words_;                 // of the row at hand
  std::vector<double> weights_;          // [words weighed], likeliest first
};

}  // namespace carousel
