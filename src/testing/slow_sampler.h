// SPDX-License-Identifier: Apache-2.0
// What sampling is, in obvious code: every word is sorted, every sum is in double precision. It
// judges the sampler that is fast.
#pragma once

#include <algorithm>
#include <cmath>
#include <cstdint>
#include <limits>
#include <map>
#include <random>
#include <set>
#include <span>
#include <vector>

#include "carousel/request.h"

namespace carousel {

struct WeightedWord {
  TokenId token = 0;
  double weight = 0.0;  // probability relative to the likeliest word's
};

class SlowSampler {
 public:
  explicit SlowSampler(const SamplingParams& params) : params_(params), generator_(params.seed) {}

  void Exempt(TokenId token) { exempt_.insert(token); }
  void See(TokenId token) {
    if (!exempt_.contains(token)) seen_.push_back(token);
  }

  // What can be drawn after all filters in their documented order, likeliest first.
  std::vector<WeightedWord> Distribution(std::span<const float> logits) const {
    std::vector<float> adjusted(logits.begin(), logits.end());
    Penalise(&adjusted);
    std::vector<TokenId> order;
    for (std::size_t i = 0; i < adjusted.size(); ++i) order.push_back(static_cast<TokenId>(i));
    const auto logit = [&](TokenId token) { return adjusted[static_cast<std::size_t>(token)]; };
    std::stable_sort(order.begin(), order.end(),
                     [&](TokenId a, TokenId b) { return logit(a) > logit(b); });
    std::vector<WeightedWord> words;
    for (const TokenId token : order) {
      const double below = static_cast<double>(logit(token)) - static_cast<double>(logit(order[0]));
      const double weight = params_.temperature == 0.0 ? (token == order[0] ? 1.0 : 0.0)
                                                       : std::exp(below / params_.temperature);
      words.push_back({.token = token, .weight = weight});
    }
    if (params_.top_k > 0) Keep(static_cast<std::size_t>(params_.top_k), &words);
    if (params_.top_p < 1.0) {
      const double wanted = params_.top_p * Total(words);
      double sum = 0.0;
      std::size_t kept = 0;
      while (kept < words.size() && sum < wanted) sum += words[kept++].weight;
      Keep(std::max<std::size_t>(kept, 1), &words);
    }
    const auto drops = [&](const WeightedWord& word) {
      return word.weight < params_.min_p || word.weight == 0.0;
    };
    words.erase(std::find_if(words.begin() + 1, words.end(), drops), words.end());
    return words;
  }

  static double Total(const std::vector<WeightedWord>& words) {
    double total = 0.0;
    for (const WeightedWord& word : words) total += word.weight;
    return total;
  }

  // The next number in [0, 1).
  double Uniform() { return std::ldexp(static_cast<double>(generator_() >> 11), -53); }

  // The first of `words` up to which they weigh more than the share `u` of their total.
  static TokenId WordAt(const std::vector<WeightedWord>& words, double u) {
    const double total = Total(words);
    double sum = 0.0;
    for (const WeightedWord& word : words) {
      sum += word.weight;
      if (sum > u * total) return word.token;
    }
    return words.back().token;
  }

  TokenId Sample(std::span<const float> logits) {
    const std::vector<WeightedWord> words = Distribution(logits);
    const TokenId token = params_.temperature == 0.0 ? words[0].token : WordAt(words, Uniform());
    See(token);
    if (!exempt_.contains(token)) ++generated_[token];
    return token;
  }

 private:
  static void Keep(std::size_t count, std::vector<WeightedWord>* words) {
    if (count < words->size()) words->resize(count);
  }

  // Logits are float32 after each step.
  void Penalise(std::vector<float>* logits) const {
    const auto limit = static_cast<double>(std::numeric_limits<float>::max());
    const auto change = [&](TokenId token, const auto& how) {
      float& logit = (*logits)[static_cast<std::size_t>(token)];
      if (!std::isinf(logit))
        logit = static_cast<float>(std::clamp(how(static_cast<double>(logit)), -limit, limit));
    };
    std::map<TokenId, bool> in_window;
    for (std::size_t back = 1;
         back <= seen_.size() && back <= static_cast<std::size_t>(params_.penalty_window); ++back)
      in_window[seen_[seen_.size() - back]] = true;
    const auto repetition = static_cast<double>(static_cast<float>(params_.repetition_penalty));
    for (const auto& [token, unused] : in_window)
      change(token, [&](double x) { return x > 0.0 ? x / repetition : x * repetition; });
    for (const auto& [token, count] : generated_) {
      const auto taken =
          static_cast<float>(params_.presence_penalty + params_.frequency_penalty * count);
      change(token, [&](double x) { return x - static_cast<double>(taken); });
    }
  }

  SamplingParams params_;
  std::mt19937_64 generator_;
  std::set<TokenId> exempt_;
  std::vector<TokenId> seen_;
  std::map<TokenId, int> generated_;
};

}  // namespace carousel
