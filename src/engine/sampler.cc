// SPDX-License-Identifier: Apache-2.0
#include "engine/sampler.h"

#include <fmt/format.h>

#include <algorithm>
#include <cmath>
#include <string>

#include "base/check.h"
#include "carousel/error.h"
#include "engine/logits.h"

namespace carousel {
namespace {

void CheckNumber(std::string_view field, double value, double least, double most) {
  if (!(value >= least && value <= most)) {  // false for NaN
    throw Error(
        ErrorCode::kInvalidArgument, field,
        fmt::format("{} is outside [{}, {}]; use a number between them", value, least, most));
  }
}

// Likelier first; of equals the smaller id, so that order never depends on the sort.
bool Likelier(float logit_a, TokenId a, float logit_b, TokenId b) {
  return logit_a != logit_b ? logit_a > logit_b : a < b;
}

}  // namespace

void Validate(const SamplingParams& params) {
  CheckNumber("temperature", params.temperature, 0.0, 100.0);
  CheckNumber("top_k", static_cast<double>(params.top_k), 0.0, 1e9);
  CheckNumber("top_p", params.top_p, 0.0, 1.0);
  if (params.top_p == 0.0) {
    throw Error(ErrorCode::kInvalidArgument, "top_p",
                "0 keeps no token; use a number above 0, or 1 for all");
  }
  CheckNumber("min_p", params.min_p, 0.0, 1.0);
  CheckNumber("repetition_penalty", params.repetition_penalty, 1e-3, 1e3);
  CheckNumber("presence_penalty", params.presence_penalty, -2.0, 2.0);
  CheckNumber("frequency_penalty", params.frequency_penalty, -2.0, 2.0);
  CheckNumber("penalty_window", static_cast<double>(params.penalty_window), 1.0, 1e9);
  CheckNumber("logprobs", static_cast<double>(params.logprobs), 0.0, 20.0);
}

Sampler::Sampler(const SamplingParams& params, std::int64_t vocabulary_size)
    : params_(params),
      generator_(params.seed),
      adjusted_(static_cast<std::size_t>(vocabulary_size)) {}

void Sampler::See(TokenId token) {
  if (params_.repetition_penalty == 1.0 || exempt_.contains(token)) return;
  window_.push_back(token);
  ++window_counts_[token];
  if (static_cast<std::int64_t>(window_.size()) > params_.penalty_window) {
    const auto oldest = window_counts_.find(window_.front());
    if (--oldest->second == 0) window_counts_.erase(oldest);
    window_.pop_front();
  }
}

double Sampler::Uniform() { return static_cast<double>(generator_() >> 11) * 0x1.0p-53; }

void Sampler::ApplyPenalties(std::span<float> logits) const {
  const auto repetition = static_cast<float>(params_.repetition_penalty);
  for (const auto& [token, count] : window_counts_) {
    float& logit = logits[static_cast<std::size_t>(token)];
    logit = logit > 0.0F ? logit / repetition : logit * repetition;
  }
  if (params_.presence_penalty == 0.0 && params_.frequency_penalty == 0.0) return;
  for (const auto& [token, count] : generated_) {
    logits[static_cast<std::size_t>(token)] -= static_cast<float>(
        params_.presence_penalty + params_.frequency_penalty * static_cast<double>(count));
  }
}

TokenId Sampler::Draw(std::span<const float> logits) {
  if (params_.temperature == 0.0) return ArgMax(logits);
  candidates_.clear();
  for (std::size_t i = 0; i < logits.size(); ++i) {
    candidates_.push_back({logits[i], static_cast<TokenId>(i)});
  }
  const auto likelier = [](const Candidate& a, const Candidate& b) {
    return Likelier(a.logit, a.token, b.logit, b.token);
  };
  if (params_.top_k > 0 && static_cast<std::size_t>(params_.top_k) < candidates_.size()) {
    std::partial_sort(candidates_.begin(), candidates_.begin() + params_.top_k, candidates_.end(),
                      likelier);
    candidates_.resize(static_cast<std::size_t>(params_.top_k));
  } else {
    std::sort(candidates_.begin(), candidates_.end(), likelier);
  }

  // Probabilities relative to the largest, then cut by top-p and min-p.
  std::vector<double> weights(candidates_.size());
  double total = 0.0;
  for (std::size_t i = 0; i < weights.size(); ++i) {
    weights[i] = std::exp(
        (static_cast<double>(candidates_[i].logit) - static_cast<double>(candidates_[0].logit)) /
        params_.temperature);
    total += weights[i];
  }
  std::size_t kept = weights.size();
  if (params_.top_p < 1.0) {
    double sum = 0.0;
    for (kept = 0; kept < weights.size() && sum < params_.top_p * total; ++kept)
      sum += weights[kept];
    kept = std::max<std::size_t>(kept, 1);
  }
  while (kept > 1 && weights[kept - 1] < params_.min_p) --kept;  // weights[0] is 1

  double sum = 0.0;
  for (std::size_t i = 0; i < kept; ++i) sum += weights[i];
  double left = Uniform() * sum;
  for (std::size_t i = 0; i + 1 < kept; ++i) {
    left -= weights[i];
    if (left < 0.0) return candidates_[i].token;
  }
  return candidates_[kept - 1].token;
}

SampledToken Sampler::Sample(std::span<const float> logits, std::optional<TokenId> forced) {
  CAROUSEL_CHECK_EQ(logits.size(), adjusted_.size());
  SampledToken sampled;
  const bool penalised = !window_counts_.empty() || params_.presence_penalty != 0.0 ||
                         params_.frequency_penalty != 0.0;
  if (forced) {
    sampled.token = *forced;
  } else if (penalised) {
    std::copy(logits.begin(), logits.end(), adjusted_.begin());
    ApplyPenalties(adjusted_);
    sampled.token = Draw(adjusted_);
  } else {
    sampled.token = Draw(logits);
  }
  See(sampled.token);
  if (!exempt_.contains(sampled.token)) ++generated_[sampled.token];

  const double normaliser = LogSumExp(logits);
  const auto logprob = [&](TokenId token) {
    return static_cast<float>(static_cast<double>(logits[static_cast<std::size_t>(token)]) -
                              normaliser);
  };
  sampled.logprob = logprob(sampled.token);
  if (params_.logprobs > 0) {
    std::vector<TokenId> order(logits.size());
    for (std::size_t i = 0; i < order.size(); ++i) order[i] = static_cast<TokenId>(i);
    const auto count =
        std::min<std::int64_t>(params_.logprobs, static_cast<std::int64_t>(order.size()));
    std::partial_sort(order.begin(), order.begin() + count, order.end(), [&](TokenId a, TokenId b) {
      return Likelier(logits[static_cast<std::size_t>(a)], a, logits[static_cast<std::size_t>(b)],
                      b);
    });
    for (std::int64_t i = 0; i < count; ++i) {
      sampled.top.push_back(
          {order[static_cast<std::size_t>(i)], logprob(order[static_cast<std::size_t>(i)])});
    }
  }
  return sampled;
}

}  // namespace carousel
