// SPDX-License-Identifier: Apache-2.0
// The conversations that `carousel evaluate` runs, as the lines of a JSON-lines file say them.
#pragma once

#include <cstdint>
#include <optional>
#include <string>
#include <string_view>
#include <variant>
#include <vector>

#include "carousel/types.h"

namespace carousel {

// A text still to be tokenized, or tokens to be taken as they are.
using TextOrTokens = std::variant<std::string, std::vector<TokenId>>;

struct EvaluationTurn {
  TextOrTokens prompt;                         // not empty
  std::optional<std::int64_t> max_new_tokens;  // at least 0; nullopt: the command's
  std::optional<TextOrTokens> score;  // the answer, given in place of the model's own; not empty
  bool score_prompt = false;
  bool pin = false;  // the turn's prompt is never evicted
};

struct EvaluationTask {
  std::string id;
  std::int64_t line = 0;  // of the file, from 1
  bool raw = false;       // without the chat template
  std::vector<EvaluationTurn> turns;
};

// One object per line; empty lines are skipped. Throws carousel::Error (kInvalidArgument, field
// "tasks") that names the line for what is no such object, for a member that is missing, of the
// wrong kind or unknown, and for a text without a line.
std::vector<EvaluationTask> ParseEvaluationTasks(std::string_view text);

}  // namespace carousel
