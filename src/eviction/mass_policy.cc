// SPDX-License-Identifier: Apache-2.0
#include "eviction/mass_policy.h"

namespace carousel {

void MassPolicy::Score(const GroupView& view, std::span<double> scores) {
  for (std::size_t i = 0; i < scores.size(); ++i) scores[i] = tracker_.Score(view.candidates[i]);
}

void MassPolicy::ScoreTokens(const GroupView& view, std::span<double> scores) {
  for (std::size_t i = 0; i < view.candidates.size(); ++i) {
    for (std::int64_t slot = 0; slot < block_size_; ++slot) {
      scores[i * static_cast<std::size_t>(block_size_) + static_cast<std::size_t>(slot)] =
          tracker_.TokenScore(view.candidates[i], slot);
    }
  }
}

}  // namespace carousel
