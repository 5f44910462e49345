// SPDX-License-Identifier: Apache-2.0
#include "answers/conversation.h"

#include <utility>

namespace carousel {
namespace {

// `spans` of what follows on `tokens` tokens.
void AppendSpans(const std::vector<TokenSpan>& spans, std::int64_t tokens,
                 std::vector<TokenSpan>* to) {
  for (const TokenSpan& span : spans) to->push_back({span.begin + tokens, span.end + tokens});
}

}  // namespace

Conversation::Conversation(SingleSequenceEngine* engine, const Tokenizer& tokenizer,
                           const TurnFormat& format, TurnSettings settings)
    : engine_(engine), format_(format), settings_(std::move(settings)), encoder_(tokenizer) {}

// The tokens of a turn, up to where the answer begins.
Conversation::Said Conversation::NextTurn(const std::string& message) {
  const bool is_first = messages_.empty();
  Said turn{.tokens = encoder_.Encode(
                is_first ? format_.FirstTurn(settings_.system, message) : format_.NextTurn(message),
                /*continues_text=*/!is_first)};
  if (!is_first || !settings_.pin_system) return turn;
  const std::int64_t system = std::ssize(encoder_.Encode(format_.Beginning(settings_.system)));
  if (system > 0) turn.pinned = {{.begin = 0, .end = system}};
  return turn;
}

// Where the sequence is gone, all that was said goes in front of the turn.
Request Conversation::RequestOf(const Said& turn) const {
  Said prompt = in_cache_ ? Said() : said_;
  const auto before = static_cast<std::int64_t>(prompt.tokens.size());
  prompt.tokens.insert(prompt.tokens.end(), turn.tokens.begin(), turn.tokens.end());
  AppendSpans(turn.pinned, before, &prompt.pinned);
  Request request{.prompt = std::move(prompt.tokens),
                  .pinned = std::move(prompt.pinned),
                  .penalise_prompt = false,
                  .max_new_tokens = settings_.max_new_tokens,
                  .sampling = settings_.sampling};
  // The same words said twice are not to get the same answer, and a script is to get the same chat.
  request.sampling.seed += turns_;
  return request;
}

Answer Conversation::Say(const std::string& message, const AnswerListener& listener) {
  const Said turn = NextTurn(message);
  bool has_read = false;
  AnswerListener watching = listener;
  watching.step = [&](const StepResult& step) {
    has_read = has_read || step.tokens_processed > 0;
    if (listener.step) listener.step(step);
  };
  Answer answer;
  try {
    answer =
        RunRequest(engine_, encoder_, RequestOf(turn),
                   {.strings = settings_.stops, .end_of_turn = format_.end_of_turn()}, watching);
  } catch (...) {
    if (has_read || engine_->HasWork()) TakeBack();
    throw;
  }
  if (answer.finish_reason == FinishReason::kCancelled && answer.tokens.empty()) {
    if (has_read) TakeBack();
    return answer;
  }
  in_cache_ = true;
  Keep(turn, message, answer);
  return answer;
}

// The sequence has half a turn in it, which nobody can take out again: it begins anew, and what was
// said is read again with the next turn.
void Conversation::TakeBack() {
  engine_->Reset();
  in_cache_ = said_.tokens.empty();
}

void Conversation::Keep(const Said& turn, const std::string& message, const Answer& answer) {
  const auto before = static_cast<std::int64_t>(said_.tokens.size());
  said_.tokens.insert(said_.tokens.end(), turn.tokens.begin(), turn.tokens.end());
  AppendSpans(turn.pinned, before, &said_.pinned);
  for (const SampledToken& sampled : answer.tokens) said_.tokens.push_back(sampled.token);
  if (answer.ended_by_token) said_.tokens.pop_back();
  if (messages_.empty() && settings_.system) messages_.push_back({"system", *settings_.system});
  messages_.push_back({"user", message});
  messages_.push_back({"assistant", answer.text});
  ++turns_;
}

void Conversation::Reset() {
  engine_->Reset();
  messages_.clear();
  said_ = {};
  in_cache_ = true;
}

}  // namespace carousel
