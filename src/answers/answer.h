// SPDX-License-Identifier: Apache-2.0
// One answer: a request run to its end, its tokens turned into text as they come.
#pragma once

#include <chrono>
#include <cstdint>
#include <functional>
#include <memory>
#include <optional>
#include <string>
#include <string_view>
#include <vector>

#include "carousel/single_sequence_engine.h"
#include "text/incremental_detokenizer.h"
#include "text/prompt_encoder.h"
#include "text/stop_strings.h"

namespace carousel {

struct Answer {
  std::string text;                                  // without the stop string
  std::vector<SampledToken> tokens;                  // the end token included
  FinishReason finish_reason = FinishReason::kNone;  // kStop for an end token and for a stop string
  std::optional<std::string> stop_string;            // the one that ended the answer
  bool ended_by_token = false;  // by the last of `tokens`, which the sequence does not keep
  std::int64_t prompt_tokens = 0;
  double first_token_seconds = 0.0;  // from the request to its first token; 0: there was none
  double decode_seconds = 0.0;       // from the first token to the last
  double prompt_seconds = 0.0;       // reading the prompt

  double prompt_tokens_per_second() const;
  // Of the tokens after the first; 0 when there are none.
  double decode_tokens_per_second() const;
};

// What ends an answer besides the model's own end tokens.
struct AnswerStops {
  // Texts. One that is written as a control token stops at that token, which is in no text.
  std::vector<std::string> strings;
  // How the chat template ends the model's turn; empty: it does not say, or is not to be heeded.
  std::string end_of_turn;
};

// Who watches an answer while it comes, and may stop it. Each may be empty.
struct AnswerListener {
  // Gets the text as soon as it is certain: whole characters, no part of a stop string.
  std::function<void(std::string_view)> show;
  // Gets every step when it is through.
  std::function<void(const StepResult&)> step;
  // Asked before each step: true ends the answer (kCancelled). For what may have come before the
  // request; SingleSequenceEngine::Cancel ends one that runs.
  std::function<bool()> is_cancelled;
};

// Stops as an engine and a text need them.
struct SplitStops {
  std::vector<TokenId> tokens;
  std::vector<std::string> token_strings;  // [tokens]: what the user called them; empty: nothing
  std::vector<std::string> texts;
  std::size_t own_texts = 0;  // so many of them are the user's; what follows ends a turn
};

// Tokens to text: an answer that grows with the steps of its request, whoever runs them.
class AnswerBuilder {
 public:
  // Gives the request the tokens and texts that stop it; the answer's times begin now. Throws
  // carousel::Error (field "stop") for a stop string that can never come, since there is a control
  // token inside it.
  AnswerBuilder(const PromptEncoder& encoder, const AnswerStops& stops, Request* request);

  // Takes what a step has given. Returns the text that is certain now: whole characters, no part of
  // a stop string.
  std::string Take(StepResult step);
  // The request has ended. Returns the text that was held back until now.
  std::string Finish();
  const Answer& answer() const { return answer_; }

 private:
  struct StopWatch;
  std::string Add(const std::string& certain);
  void NoteEnd();

  SplitStops stops_;
  IncrementalDetokenizer detokenizer_;
  StopStringMatcher matcher_;
  std::shared_ptr<StopWatch> stop_watch_;  // the request's as well; null: no texts stop it
  Answer answer_;
  std::chrono::steady_clock::time_point begin_;
};

// Runs `request` until it ends, a stop comes or it is cancelled. Throws carousel::Error (field
// "stop") for a stop string that can never come, since there is a control token inside it.
Answer RunRequest(SingleSequenceEngine* engine, const PromptEncoder& encoder, Request request,
                  const AnswerStops& stops, const AnswerListener& listener);

}  // namespace carousel
