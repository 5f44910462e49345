// SPDX-License-Identifier: Apache-2.0
#include "cli/answer.h"

#include <utility>

#include "base/clock.h"
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

std::int64_t SystemTokens(const TurnFormat& format, const std::optional<std::string>& system,
                          const Tokenizer& tokenizer) {
  return static_cast<std::int64_t>(
      tokenizer.Encode(format.Beginning(system), {.add_special_tokens = false}).size());
}

Answer RunRequest(Engine* engine, const Tokenizer& tokenizer, Request request,
                  const std::vector<std::string>& stops, const Interrupt& interrupt,
                  const AnswerListener& listener) {
  IncrementalDetokenizer detokenizer(tokenizer);
  StopStringMatcher matcher(stops);
  Answer answer;
  answer.prompt_tokens = static_cast<std::int64_t>(request.prompt.size());
  const auto pass_on = [&](const std::string& text) {
    if (text.empty()) return;
    answer.text += text;
    if (listener.show) listener.show(text);
  };
  const auto begin = Clock::now();
  engine->Submit(std::move(request));
  while (engine->HasWork()) {
    // A stop string ends the request; so does a signal, which before Submit has cancelled nothing.
    if (matcher.matched() || interrupt.raised()) engine->Cancel();
    StepResult step = engine->Step();
    answer.finish_reason = step.finish_reason;
    if (listener.step) listener.step(step);
    if (!step.sampled) continue;
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
  if (matcher.matched()) {
    answer.finish_reason = FinishReason::kStop;
    answer.stop_string = stops[*matcher.matched()];
  }
  return answer;
}

}  // namespace carousel
