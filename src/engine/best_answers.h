// SPDX-License-Identifier: Apache-2.0
// The best answers that a group of beams has found so far, and whether they are enough.
#pragma once

#include <cstdint>
#include <vector>

#include "carousel/beam_params.h"
#include "carousel/beam_search.h"

namespace carousel {

class BestAnswers {
 public:
  // Keeps as many as a group has beams. `max_tokens` is how long an answer can become.
  BestAnswers(const BeamParams& params, std::int64_t max_tokens);

  // Gives the answer, of at least one token, its score, and keeps it if it is among the best; of
  // equal ones those that came first.
  void Add(BeamAnswer answer);
  // Whether the search may end: `sum` is of the best beam that goes on, which has `tokens` tokens.
  bool AreEnough(double sum, std::int64_t tokens) const;
  // Best first.
  const std::vector<BeamAnswer>& answers() const { return answers_; }

 private:
  double ScoreOf(double sum, std::int64_t tokens) const;

  double length_penalty_;
  StopCriteria stop_criteria_;
  std::int64_t most_;
  std::int64_t max_tokens_;
  std::vector<BeamAnswer> answers_;
};

}  // namespace carousel
