// SPDX-License-Identifier: Apache-2.0
#include "engine/best_answers.h"

#include <algorithm>
#include <cmath>
#include <utility>

#include "base/check.h"

namespace carousel {

BestAnswers::BestAnswers(const BeamParams& params, std::int64_t max_tokens)
    : length_penalty_(params.length_penalty),
      // The greedy answer ends with its first end.
      stop_criteria_(params.num_beams == 1 ? StopCriteria::kEarly : params.stop_criteria),
      most_(params.num_beams / params.num_beam_groups),
      max_tokens_(max_tokens) {}

double BestAnswers::ScoreOf(double sum, std::int64_t tokens) const {
  return sum / std::pow(static_cast<double>(tokens), length_penalty_);
}

void BestAnswers::Add(BeamAnswer answer) {
  CAROUSEL_CHECK(!answer.tokens.empty());
  answer.score = ScoreOf(answer.sum, std::ssize(answer.tokens));
  const auto place =
      std::upper_bound(answers_.begin(), answers_.end(), answer.score,
                       [](double score, const BeamAnswer& other) { return score > other.score; });
  answers_.insert(place, std::move(answer));
  if (std::ssize(answers_) > most_) answers_.pop_back();
}

bool BestAnswers::AreEnough(double sum, std::int64_t tokens) const {
  if (std::ssize(answers_) < most_) return false;
  if (stop_criteria_ == StopCriteria::kEarly) return true;
  // Sums only fall. Where length is rewarded, none can do better than to keep its sum to the end;
  // elsewhere, than to end here.
  const bool counts_on_length = stop_criteria_ == StopCriteria::kNever && length_penalty_ > 0.0;
  return answers_.back().score >= ScoreOf(sum, counts_on_length ? max_tokens_ : tokens);
}

}  // namespace carousel
