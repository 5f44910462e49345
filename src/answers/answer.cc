// SPDX-License-Identifier: Apache-2.0
#include "answers/answer.h"

#include <fmt/format.h>

#include <utility>

#include "base/clock.h"
#include "carousel/error.h"
#include "text/incremental_detokenizer.h"
#include "text/stop_strings.h"

namespace carousel {
double Answer::prompt_tokens_per_second() const {
  return prompt_seconds > 0 ? static_cast<double>(prompt_tokens) / prompt_seconds : 0.0;
}

double Answer::decode_tokens_per_second() const {
  if (tokens.size() < 2 || decode_seconds <= 0) return 0.0;
  return static_cast<double>(tokens.size() - 1) / decode_seconds;
}

namespace {

// Stops as the engine and the text need them.
struct SplitStops {
  std::vector<TokenId> tokens;
  std::vector<std::string> token_strings;  // [tokens]: what the user called them; empty: nothing
  std::vector<std::string> texts;
  std::size_t own_texts = 0;  // so many of them are the user's; what follows ends a turn
};

[[noreturn]] void RefuseStop(const std::string& stop, std::string_view word) {
  throw Error(ErrorCode::kInvalidArgument, "stop",
              fmt::format("\"{}\" has the control token {} in it, which is never in a text; give "
                          "the token alone, or a text without it",
                          stop, word));
}

SplitStops Split(const AnswerStops& stops, const PromptEncoder& encoder) {
  SplitStops split;
  for (const std::string& stop : stops.strings) {
    const auto word = encoder.FindControlWord(stop);
    if (!word) {
      split.texts.push_back(stop);
      continue;
    }
    // What comes behind the token comes too late to matter.
    const std::optional<std::string_view> first = encoder.ControlWordAtBegin(stop);
    if (!first) RefuseStop(stop, std::string_view(stop).substr(word->begin, word->bytes));
    split.tokens.push_back(*encoder.ControlToken(*first));
    split.token_strings.push_back(stop);
  }
  split.own_texts = split.texts.size();
  if (stops.end_of_turn.empty()) return split;
  if (const std::optional<TokenId> token = encoder.ControlToken(stops.end_of_turn)) {
    split.tokens.push_back(*token);
    split.token_strings.emplace_back();
  } else {
    split.texts.push_back(stops.end_of_turn);
  }
  return split;
}

// Says in the answer by what it was ended.
void NoteEnd(const SplitStops& stops, const StopStringMatcher& matcher, Answer* answer) {
  if (matcher.matched()) {
    answer->finish_reason = FinishReason::kStop;
    if (*matcher.matched() < stops.own_texts) answer->stop_string = stops.texts[*matcher.matched()];
    return;
  }
  if (!answer->ended_by_token) return;
  for (std::size_t i = 0; i < stops.tokens.size(); ++i) {
    if (stops.tokens[i] != answer->tokens.back().token || stops.token_strings[i].empty()) continue;
    answer->stop_string = stops.token_strings[i];
    return;
  }
}

}  // namespace

Answer RunRequest(Engine* engine, const PromptEncoder& encoder, Request request,
                  const AnswerStops& stops, const AnswerListener& listener) {
  const SplitStops split = Split(stops, encoder);
  IncrementalDetokenizer detokenizer(encoder.tokenizer());
  StopStringMatcher matcher(split.texts);
  Answer answer;
  answer.prompt_tokens = static_cast<std::int64_t>(request.prompt.size());
  request.stop_tokens.insert(request.stop_tokens.end(), split.tokens.begin(), split.tokens.end());
  const auto pass_on = [&](const std::string& text) {
    if (text.empty()) return;
    answer.text += text;
    if (listener.show) listener.show(text);
  };
  const auto begin = Clock::now();
  engine->Submit(std::move(request));
  while (engine->HasWork()) {
    // A stop string ends the request; so does who has cancelled it before Submit, which Submit
    // does not see.
    if (matcher.matched() || (listener.is_cancelled && listener.is_cancelled())) engine->Cancel();
    StepResult step = engine->Step();
    answer.finish_reason = step.finish_reason;
    if (listener.step) listener.step(step);
    if (!step.sampled) continue;
    answer.ended_by_token = step.finish_reason == FinishReason::kStop;
    if (answer.tokens.empty()) {
      answer.first_token_seconds = answer.prompt_seconds = SecondsSince(begin);
    } else {
      answer.decode_seconds = SecondsSince(begin) - answer.first_token_seconds;
    }
    answer.tokens.push_back(*std::move(step.sampled));
    pass_on(matcher.Push(detokenizer.Push(answer.tokens.back().token)));
  }
  if (answer.tokens.empty()) answer.prompt_seconds = SecondsSince(begin);
  pass_on(matcher.Push(detokenizer.Flush()));
  pass_on(matcher.Flush());
  NoteEnd(split, matcher, &answer);
  return answer;
}

}  // namespace carousel
