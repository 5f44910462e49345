// SPDX-License-Identifier: Apache-2.0
#include "engine/sampler.h"

#include <algorithm>
#include <cmath>
#include <limits>
#include <optional>
#include <utility>

#include "base/check.h"

namespace carousel {
namespace {

constexpr float kLowest = std::numeric_limits<float>::lowest();

}  // namespace

Sampler::Sampler(const SamplingParams& params)
    : params_(params), generator_(params.seed), penalties_(params) {}

double Sampler::Uniform() { return static_cast<double>(generator_() >> 11) * 0x1.0p-53; }

// A word's probability relative to the likeliest word's.
double Sampler::WeightOf(RankedWord word, float largest) const {
  return std::exp((static_cast<double>(word.logit()) - static_cast<double>(largest)) /
                  params_.temperature);
}

bool Sampler::HasTopK(const AdjustedLogits& logits) const {
  return params_.top_k > 0 && std::cmp_less(params_.top_k, logits.size());
}

// No word below it is asked for: where min-p drops those and top-p does not count k words with
// them, it is a little less than largest + temperature ln min_p.
float Sampler::LeastLogit(const AdjustedLogits& logits) const {
  if (params_.min_p == 0.0 || (HasTopK(logits) && params_.top_p < 1.0)) return kLowest;
  const double least = static_cast<double>(logits.largest()) +
                       params_.temperature * (std::log(params_.min_p) - 1e-6);
  if (least <= static_cast<double>(kLowest)) return kLowest;
  return std::nextafter(static_cast<float>(least), kLowest);
}

// 0: there are no more words that can be drawn.
double Sampler::WeightAt(std::size_t rank, float largest) {
  while (weights_.size() <= rank) {
    const std::size_t next = weights_.size();
    weights_.push_back(words_.Has(next) ? WeightOf(words_[next], largest) : 0.0);
  }
  return weights_[rank];
}

// What the words that top-p looks at weigh together: of the whole vocabulary within bounds, from a
// sum in single precision of what has not been taken from the row, and exactly once the bounds
// leave something open.
class Sampler::TotalWeight {
 public:
  explicit TotalWeight(double exact) : least_(exact), most_(exact) {}
  TotalWeight(const Sampler& sampler, const AdjustedLogits& logits)
      : sampler_(&sampler), logits_(&logits) {
    const double taken = WeightOfTaken();
    const BoundedSum rest =
        logits.SumBelow(sampler.words_.taken_down_to(), sampler.params_.temperature);
    least_ = taken + rest.sum - rest.error;
    most_ = taken + rest.sum + rest.error;
  }

  // Negative, 0 or positive as `weight` is less than, equal to or more than `share` of the total.
  double Compare(double weight, double share) {
    if (weight > share * most_) return 1.0;
    if (weight < share * least_) return -1.0;
    if (least_ < most_) {
      least_ = most_ = WeightOfTaken() + logits_->ExactSumBelow(sampler_->words_.taken_down_to(),
                                                                sampler_->params_.temperature);
    }
    return weight - share * most_;
  }

 private:
  double WeightOfTaken() const {
    double sum = 0.0;
    for (const RankedWord word : sampler_->words_.taken())
      sum += sampler_->WeightOf(word, logits_->largest());
    return sum;
  }

  const Sampler* sampler_ = nullptr;
  const AdjustedLogits* logits_ = nullptr;
  double least_ = 0.0;
  double most_ = 0.0;
};

// Without a filter all words are kept, and nobody needs to look at most of them.
TokenId Sampler::DrawFromAll(const AdjustedLogits& logits) {
  TotalWeight total(*this, logits);
  const double u = Uniform();
  double sum = 0.0;
  std::size_t rank = 0;
  for (; WeightAt(rank, logits.largest()) > 0.0; ++rank) {
    sum += weights_[rank];
    if (total.Compare(sum, u) > 0.0) return words_[rank].token();
  }
  return words_[rank - 1].token();  // rounding kept the sum below
}

// How many of the likeliest words the filters keep: at least one.
std::size_t Sampler::CountKept(const AdjustedLogits& logits) {
  const float largest = logits.largest();
  const bool limited = HasTopK(logits);
  const std::size_t most = limited ? static_cast<std::size_t>(params_.top_k) : logits.size();
  std::optional<TotalWeight> total;
  if (params_.top_p < 1.0 && limited) {
    double sum = 0.0;
    for (std::size_t rank = 0; rank < most && WeightAt(rank, largest) > 0.0; ++rank)
      sum += weights_[rank];
    total.emplace(sum);
  } else if (params_.top_p < 1.0) {
    total.emplace(*this, logits);
  }
  double sum = WeightAt(0, largest);  // 1
  std::size_t kept = 1;
  for (; kept < most; ++kept) {
    if (total && total->Compare(sum, params_.top_p) >= 0.0) break;
    const double weight = WeightAt(kept, largest);
    if (weight == 0.0 || weight < params_.min_p) break;
    sum += weight;
  }
  return kept;
}

TokenId Sampler::Draw(const AdjustedLogits& logits) {
  if (params_.temperature == 0.0) return logits.Likeliest();
  words_.Begin(&logits, params_.temperature, LeastLogit(logits));
  weights_.clear();
  if (!HasTopK(logits) && params_.top_p == 1.0 && params_.min_p == 0.0) return DrawFromAll(logits);
  const std::size_t kept = CountKept(logits);
  double sum = 0.0;
  for (std::size_t i = 0; i < kept; ++i) sum += weights_[i];
  double left = Uniform() * sum;
  for (std::size_t i = 0; i + 1 < kept; ++i) {
    left -= weights_[i];
    if (left < 0.0) return words_[i].token();
  }
  return words_[kept - 1].token();
}

SampledToken Sampler::Sample(std::span<const float> logits, const LogitsSummary& summary,
                             std::optional<TokenId> forced) {
  SampledToken sampled = Choose(logits, summary, forced);
  Accept(sampled.token);
  return sampled;
}

void Sampler::Accept(TokenId token) {
  See(token);
  penalties_.CountGenerated(token);
}

SampledToken Sampler::Choose(std::span<const float> logits, const LogitsSummary& summary,
                             std::optional<TokenId> forced) {
  const std::mt19937_64 before = generator_;
  try {
    return ChooseUnguarded(logits, summary, forced);
  } catch (...) {
    generator_ = before;
    throw;
  }
}

SampledToken Sampler::ChooseUnguarded(std::span<const float> logits, const LogitsSummary& summary,
                                      std::optional<TokenId> forced) {
  CAROUSEL_CHECK(summary.usable());
  SampledToken sampled;
  if (forced) {
    sampled.token = *forced;
  } else {
    penalties_.Adjust(logits, &adjustments_);
    sampled.token = params_.temperature == 0.0 && adjustments_.empty()
                        ? summary.likeliest
                        : Draw(AdjustedLogits(logits, summary, adjustments_));
  }
  const auto logprob = [&](float logit) {
    return static_cast<float>(static_cast<double>(logit) - summary.log_sum_exp);
  };
  sampled.logprob = logprob(logits[static_cast<std::size_t>(sampled.token)]);
  if (params_.logprobs > 0) {
    const AdjustedLogits unchanged(logits, summary, {});
    words_.Begin(&unchanged, 1.0, kLowest);
    for (std::size_t i = 0; std::cmp_less(i, params_.logprobs) && words_.Has(i); ++i)
      sampled.top.push_back({words_[i].token(), logprob(words_[i].logit())});
  }
  return sampled;
}

}  // namespace carousel
