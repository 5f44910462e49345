// SPDX-License-Identifier: Apache-2.0
// Beam search: of many answers to a prompt those that the model thinks likeliest.
//
// The prompt is read once. Each beam is a sequence of the engine with a cache of its own, forked
// from the beam that it goes on from; what it forgets is what it would have forgotten alone. All
// beams move in the same step, one row each, where the scheduler lets as many run.
//
// A search does not step the engine: who does hands on what comes of its sequences. So several
// searches and other requests can run side by side:
//
//   const auto search = BeamSearch::Start(engine, engine->Open(), request, params);
//   while (search->HasWork()) {
//     for (StepOutput& output : engine->Step())
//       if (search->IsOf(output.sequence)) search->Take(std::move(output));
//   }
//   Use(search->answers());
#pragma once

#include <cstdint>
#include <memory>
#include <vector>

#include "carousel/beam_params.h"
#include "carousel/engine.h"

namespace carousel {

struct BeamAnswer {
  std::vector<TokenId> tokens;  // the end token included
  // [tokens], natural logarithms, of the model's distribution; without penalties.
  std::vector<float> logprobs;
  double sum = 0.0;    // of logprobs, less the diversity penalties
  double score = 0.0;  // sum / tokens^length_penalty; what answers are ranked by
  FinishReason finish_reason = FinishReason::kNone;
};

class BeamSearch {
 public:
  // Takes `sequence`, which has no request, and begins to read the request's prompt in it; it is
  // closed when the search ends. `engine` outlives the search. Of the request these count: prompt,
  // pinned, max_new_tokens, ignore_end_tokens, stop_tokens, priority, deadline. Throws
  // carousel::Error, and the sequence is as it was: for bad parameters, as Engine::Submit, for no
  // new tokens, for more beams than requests may run and wait, and for what has no place in a
  // search: sampling, penalties of repetition, speculation, logprobs, stop_after, a forced answer,
  // a scored prompt, kept logits.
  static std::unique_ptr<BeamSearch> Start(Engine* engine, SequenceId sequence, Request request,
                                           const BeamParams& params);
  // Closes what is open. Between steps, as all below.
  virtual ~BeamSearch() = default;

  // Whether a step's output is for the search.
  virtual bool IsOf(SequenceId sequence) const = 0;
  // Takes such an output. When all beams have theirs, chooses what they go on with. Throws what a
  // beam's step has failed with, or the fork or the request for the next one: out of memory, say.
  // The search has then ended without answers, and its sequences are closed. A beam's request that
  // was cancelled or has expired ends the search as Cancel does.
  virtual void Take(StepOutput output) = 0;
  virtual bool HasWork() const = 0;
  // Ends the search: beams that go on become answers as they are (kCancelled).
  virtual void Cancel() = 0;
  // Once there is no work: the best first, num_return_sequences of them. There are fewer where
  // nothing else may follow: the vocabulary is too small, or all that is left would be a repeat.
  virtual const std::vector<BeamAnswer>& answers() const = 0;
  // Of one of the beams; once there is no work, as it stood at the end.
  virtual SequenceMetrics metrics() const = 0;
};

// Searches to the end on an engine that does nothing else.
std::vector<BeamAnswer> SearchBeams(Engine* engine, SequenceId sequence, Request request,
                                    const BeamParams& params);

}  // namespace carousel
