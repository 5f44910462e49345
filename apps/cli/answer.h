// SPDX-License-Identifier: Apache-2.0
// One answer: a request run to its end, its tokens turned into text as they come.
#pragma once

#include <cstdint>
#include <functional>
#include <optional>
#include <string>
#include <string_view>
#include <vector>

#include "carousel/engine.h"
#include "cli/interrupt.h"
#include "engine/tokenizer.h"
#include "text/turn_format.h"

namespace carousel {

struct Answer {
  std::string text;                                  // without the stop string
  std::vector<SampledToken> tokens;                  // the end token included
  FinishReason finish_reason = FinishReason::kNone;  // kStop for an end token and for a stop string
  std::optional<std::string> stop_string;            // the one that ended the answer
  std::int64_t prompt_tokens = 0;
  double first_token_seconds = 0.0;  // from the request to its first token; 0: there was none
  double decode_seconds = 0.0;       // from the first token to the last
  double prompt_seconds = 0.0;       // reading the prompt

  double prompt_tokens_per_second() const;
  // Of the tokens after the first; 0 when there are none.
  double decode_tokens_per_second() const;
};

// How many of a first turn's tokens come before the user's message.
std::int64_t SystemTokens(const TurnFormat& format, const std::optional<std::string>& system,
                          const Tokenizer& tokenizer);

// Who watches an answer while it comes. Either may be empty.
struct AnswerListener {
  // Gets the text as soon as it is certain: whole characters, no part of a stop string.
  std::function<void(std::string_view)> show;
  // Gets every step when it is through.
  std::function<void(const StepResult&)> step;
};

// Runs `request` until it ends, a stop string comes or `interrupt` is raised (kCancelled).
Answer RunRequest(Engine* engine, const Tokenizer& tokenizer, Request request,
                  const std::vector<std::string>& stops, const Interrupt& interrupt,
                  const AnswerListener& listener);

}  // namespace carousel
