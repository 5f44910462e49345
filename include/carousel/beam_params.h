// SPDX-License-Identifier: Apache-2.0
// What a beam search is told (carousel/beam_search.h).
#pragma once

#include <cstdint>

#include "carousel/enums.h"
#include "carousel/request.h"

namespace carousel {

// The names and the meanings are those of openvino.genai and of Hugging Face transformers. A beam
// is an answer in the making. Beams of a group compete; groups are kept apart by a penalty (diverse
// beam search, Vijayakumar et al. 2016).
struct BeamParams {
  std::int64_t num_beams = 1;        // over all groups; in [1, 128]. 1: the greedy answer
  std::int64_t num_beam_groups = 1;  // divides num_beams
  // >= 0; taken from a word's log probability for each beam of an earlier group that has chosen the
  // word in the same step. More than 0 where there are several groups.
  double diversity_penalty = 0.0;
  // In [-10, 10]. An answer's score is the sum of its words' log probabilities, less the penalties,
  // divided by the number of its words to this power: the larger, the longer the answers.
  double length_penalty = 1.0;
  std::int64_t num_return_sequences = 1;  // at most num_beams
  // No run of so many tokens comes twice in prompt and answer. 0: off.
  std::int64_t no_repeat_ngram_size = 0;
  StopCriteria stop_criteria = StopCriteria::kHeuristic;
  friend bool operator==(const BeamParams&, const BeamParams&) = default;
};

// Throws carousel::Error that names the field, the value, the limit and the mend.
void Validate(const BeamParams& params);
// Likewise, for sampling that has no place in a beam search: anything but the likeliest, penalties
// of repetition, speculation, logprobs.
void ValidateForBeams(const SamplingParams& sampling);

}  // namespace carousel
