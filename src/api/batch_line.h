// SPDX-License-Identifier: Apache-2.0
// The lines of a batch: requests in, answers out, in the two forms that `carousel batch` knows.
//
// OpenAI's: {"custom_id", "method", "url", "body"}, where url is /v1/chat/completions or
// /v1/completions and body is what would be posted there. Plain ones: {"custom_id", "prompt" or
// "messages", "max_tokens", ...}.
#pragma once

#include <cstdint>
#include <nlohmann/json_fwd.hpp>
#include <optional>
#include <span>
#include <string>
#include <string_view>
#include <variant>
#include <vector>

#include "answers/answer.h"
#include "answers/conversation.h"
#include "carousel/metrics.h"
#include "carousel/request.h"

namespace carousel {

// What a line leaves open.
struct BatchDefaults {
  SamplingParams sampling;
  std::vector<std::string> stops;
  std::int64_t max_new_tokens = 0;
  bool raw = false;  // plain prompts go to the model without the chat template
};

struct BatchRequest {
  // Messages of a conversation, a text, or a text's tokens.
  std::variant<std::vector<Message>, std::string, std::vector<TokenId>> prompt;
  bool raw = false;  // a text is the prompt as it is, and no user's message
  SamplingParams sampling;
  std::vector<std::string> stops;
  std::int64_t max_new_tokens = 0;
  bool ignore_end_tokens = false;
  // At most kMostAnswers; the seeds of later ones follow on the first one's.
  std::int64_t answers = 1;
};
inline constexpr std::int64_t kMostAnswers = 128;

enum class BatchForm { kPlain, kCompletion, kChatCompletion };

struct BatchLine {
  std::int64_t number = 0;  // of the file, from 1
  BatchForm form = BatchForm::kPlain;
  std::optional<std::string> custom_id;  // nullopt: it could not be read
  // One of the two is there.
  std::optional<BatchRequest> request;
  std::string problem;  // why there is no request
};

// Never throws for what is in the line. Members that are unknown are refused in plain lines; in
// OpenAI's, only those that would change the answer.
BatchLine ReadBatchLine(std::string_view line, std::int64_t number, const BatchDefaults& defaults);

// The custom_id of a line, of either side; nullopt: there is none to be read.
std::optional<std::string> CustomIdOf(std::string_view line);

// What stands in a file of answers behind its last whole line, or is one of its lines.
enum class OutputPiece { kLine, kBeginning, kNeither };
// kLine: what AnswerLine or ErrorLine give, whole. kBeginning: the first bytes of one of those.
OutputPiece PieceOf(std::string_view text);

// What became of a line that has a request: `answers` are as many as it asks for, `metrics` those
// of the sequence that the last one is in. `created` in seconds since 1970.
nlohmann::ordered_json AnswerLine(const BatchLine& line, std::span<const Answer> answers,
                                  const SequenceMetrics& metrics, std::string_view model,
                                  std::int64_t created);
// Of a line that got no answer. `is_ours`: the fault is not the line's.
nlohmann::ordered_json ErrorLine(const BatchLine& line, std::string_view problem, bool is_ours);

}  // namespace carousel
