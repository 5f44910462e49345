// SPDX-License-Identifier: Apache-2.0
#include "answers/answer.h"

#include <fmt/format.h>

#include <memory>
#include <utility>

#include "base/clock.h"
#include "carousel/error.h"

namespace carousel {
double Answer::prompt_tokens_per_second() const {
  return prompt_seconds > 0 ? static_cast<double>(prompt_tokens) / prompt_seconds : 0.0;
}

double Answer::decode_tokens_per_second() const {
  if (tokens.size() < 2 || decode_seconds <= 0) return 0.0;
  return static_cast<double>(tokens.size() - 1) / decode_seconds;
}

namespace {

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

}  // namespace

// Tells the engine with which token a stop string is complete, before it keeps any that follow.
struct AnswerBuilder::StopWatch {
  StopWatch(const Tokenizer& tokenizer, const std::vector<std::string>& texts)
      : detokenizer(tokenizer), matcher(texts) {}

  bool IsComplete(TokenId token) {
    matcher.Push(detokenizer.Push(token));
    return matcher.matched().has_value();
  }

  IncrementalDetokenizer detokenizer;
  StopStringMatcher matcher;
};

AnswerBuilder::AnswerBuilder(const PromptEncoder& encoder, const AnswerStops& stops,
                             Request* request)
    : stops_(Split(stops, encoder)),
      detokenizer_(encoder.tokenizer()),
      matcher_(stops_.texts),
      begin_(Clock::now()) {
  answer_.prompt_tokens = static_cast<std::int64_t>(request->prompt.size());
  request->stop_tokens.insert(request->stop_tokens.end(), stops_.tokens.begin(),
                              stops_.tokens.end());
  if (stops_.texts.empty()) return;
  stop_watch_ = std::make_shared<StopWatch>(encoder.tokenizer(), stops_.texts);
  request->stop_after = [watch = stop_watch_](TokenId token) { return watch->IsComplete(token); };
}

std::string AnswerBuilder::Add(const std::string& certain) {
  answer_.text += certain;
  return certain;
}

std::string AnswerBuilder::Take(StepResult step) {
  answer_.finish_reason = step.finish_reason;
  if (!step.sampled) return "";
  const bool by_text = stop_watch_ && stop_watch_->matcher.matched();
  answer_.ended_by_token = step.finish_reason == FinishReason::kStop && !by_text;
  if (answer_.tokens.empty()) {
    answer_.first_token_seconds = answer_.prompt_seconds = SecondsSince(begin_);
  } else {
    answer_.decode_seconds = SecondsSince(begin_) - answer_.first_token_seconds;
  }
  answer_.tokens.push_back(*std::move(step.sampled));
  return Add(matcher_.Push(detokenizer_.Push(answer_.tokens.back().token)));
}

std::string AnswerBuilder::Finish() {
  if (answer_.tokens.empty()) answer_.prompt_seconds = SecondsSince(begin_);
  std::string text = Add(matcher_.Push(detokenizer_.Flush()));
  text += Add(matcher_.Flush());
  NoteEnd();
  return text;
}

// Says in the answer by what it was ended.
void AnswerBuilder::NoteEnd() {
  if (matcher_.matched()) {
    answer_.finish_reason = FinishReason::kStop;
    if (*matcher_.matched() < stops_.own_texts)
      answer_.stop_string = stops_.texts[*matcher_.matched()];
    return;
  }
  if (!answer_.ended_by_token) return;
  for (std::size_t i = 0; i < stops_.tokens.size(); ++i) {
    if (stops_.tokens[i] != answer_.tokens.back().token || stops_.token_strings[i].empty())
      continue;
    answer_.stop_string = stops_.token_strings[i];
    return;
  }
}

Answer RunRequest(SingleSequenceEngine* engine, const PromptEncoder& encoder, Request request,
                  const AnswerStops& stops, const AnswerListener& listener) {
  AnswerBuilder builder(encoder, stops, &request);
  const auto show = [&](const std::string& text) {
    if (listener.show && !text.empty()) listener.show(text);
  };
  engine->Submit(std::move(request));
  while (engine->HasWork()) {
    // For who has cancelled it before Submit, which Submit does not see.
    if (listener.is_cancelled && listener.is_cancelled()) engine->Cancel();
    StepResult step = engine->Step();
    if (listener.step) listener.step(step);
    show(builder.Take(std::move(step)));
  }
  show(builder.Finish());
  return builder.answer();
}

}  // namespace carousel
