// SPDX-License-Identifier: Apache-2.0
#include "engine/penalties.h"

#include <algorithm>
#include <limits>

namespace carousel {

Penalties::Penalties(const SamplingParams& params)
    : has_repetition_(params.repetition_penalty != 1.0),
      has_generated_(params.presence_penalty != 0.0 || params.frequency_penalty != 0.0),
      repetition_(static_cast<float>(params.repetition_penalty)),
      presence_(params.presence_penalty),
      frequency_(params.frequency_penalty),
      window_size_(params.penalty_window) {}

Penalties::Counts& Penalties::CountsOf(TokenId token) {
  const auto place =
      std::lower_bound(counts_.begin(), counts_.end(), token,
                       [](const Counts& counts, TokenId wanted) { return counts.token < wanted; });
  if (place != counts_.end() && place->token == token) return *place;
  return *counts_.insert(place, {.token = token});
}

void Penalties::See(TokenId token) {
  if (!has_repetition_ || exempt_.contains(token)) return;
  window_.push_back(token);
  ++CountsOf(token).in_window;
  if (static_cast<std::int64_t>(window_.size()) <= window_size_) return;
  Counts& oldest = CountsOf(window_.front());
  window_.pop_front();
  if (--oldest.in_window == 0 && oldest.generated == 0)
    counts_.erase(counts_.begin() + (&oldest - counts_.data()));
}

void Penalties::CountGenerated(TokenId token) {
  if (has_generated_ && !exempt_.contains(token)) ++CountsOf(token).generated;
}

void Penalties::Adjust(std::span<const float> logits, std::vector<Adjustment>* adjustments) const {
  using Limits = std::numeric_limits<float>;
  adjustments->clear();
  for (const Counts& counts : counts_) {
    float logit = logits[static_cast<std::size_t>(counts.token)];
    if (logit != -Limits::infinity()) {
      if (counts.in_window > 0) logit = logit > 0.0F ? logit / repetition_ : logit * repetition_;
      if (counts.generated > 0)
        logit -= static_cast<float>(presence_ + frequency_ * static_cast<double>(counts.generated));
      logit = std::clamp(logit, Limits::lowest(), Limits::max());
    }
    adjustments->push_back({.token = counts.token, .logit = logit});
  }
}

}  // namespace carousel
