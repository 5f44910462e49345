// SPDX-License-Identifier: Apache-2.0
// carousel generate: one prompt, one answer.
#include <fmt/format.h>

#include <algorithm>
#include <nlohmann/json.hpp>
#include <optional>

#include "answers/answer.h"
#include "answers/prompt_file.h"
#include "answers/run_summary.h"
#include "answers/settings_json.h"
#include "carousel/error.h"
#include "cli/commands.h"
#include "cli/interrupt.h"
#include "cli/json_lines.h"
#include "cli/numbers.h"
#include "cli/recall_notice.h"
#include "text/turn_format.h"

namespace carousel {
namespace {

using nlohmann::ordered_json;

[[noreturn]] void FailPrompt(std::string_view problem) {
  throw Error(ErrorCode::kInvalidArgument, "prompt", problem);
}

TurnFormat Turns(const GenerateFlags& flags) {
  return LoadTurns(flags.model.directory, "or give --raw and write the template's marks yourself");
}

// Files are read and checked before anything is loaded.
std::string PromptText(const GenerateFlags& flags) {
  std::string text = flags.prompt ? *flags.prompt : ReadPromptFile(*flags.prompt_file);
  if (text.empty()) FailPrompt("is empty; give some text");
  return text;
}

// The prompt of a request: tokens, a text as it is, or the first turn of a conversation.
class Prompt {
 public:
  explicit Prompt(const GenerateFlags& flags) : flags_(flags) {
    if (flags.token_ids_file) {
      tokens_ = ReadTokenIds(*flags.token_ids_file);
      return;
    }
    text_ = PromptText(flags);
    if (flags.raw) return;
    turns_ = Turns(flags);
    parts_ = turns_->FirstTurn(flags.system, text_);
  }

  void Fill(PromptEncoder* encoder, Request* request) const {
    std::int64_t pinned = flags_.pin_tokens;
    if (turns_) {
      request->prompt = encoder->Encode(parts_);
      request->penalise_prompt = false;
      if (flags_.pin_system) {
        const PromptParts system = turns_->Beginning(flags_.system);
        pinned = std::max<std::int64_t>(pinned, std::ssize(encoder->Encode(system)));
      }
    } else if (flags_.token_ids_file) {
      request->prompt = tokens_;
    } else {
      request->prompt = encoder->tokenizer().Encode(text_, {.add_special_tokens = true});
    }
    pinned = std::min<std::int64_t>(pinned, std::ssize(request->prompt));
    if (pinned > 0) request->pinned = {{.begin = 0, .end = pinned}};
  }

  AnswerStops Stops() const {
    return {.strings = flags_.sampling.stops,
            .end_of_turn = turns_ && !flags_.ignore_eos ? turns_->end_of_turn() : ""};
  }

 private:
  const GenerateFlags& flags_;
  std::vector<TokenId> tokens_;
  std::string text_;
  std::optional<TurnFormat> turns_;
  PromptParts parts_;
};

ordered_json LogprobsOf(const Answer& answer) {
  ordered_json list = ordered_json::array();
  for (const SampledToken& sampled : answer.tokens) {
    ordered_json top = ordered_json::array();
    for (const TokenLogprob& entry : sampled.top)
      top.push_back({{"token", entry.token}, {"logprob", entry.logprob}});
    list.push_back(
        {{"token", sampled.token}, {"logprob", sampled.logprob}, {"top", std::move(top)}});
  }
  return list;
}

ordered_json Summary(const Answer& answer, const GenerateFlags& flags,
                     const SingleSequenceEngine& engine) {
  std::vector<TokenId> token_ids;
  for (const SampledToken& sampled : answer.tokens) token_ids.push_back(sampled.token);
  ordered_json summary{{"type", "summary"},
                       {"prompt_tokens", answer.prompt_tokens},
                       {"new_tokens", token_ids.size()},
                       {"text", answer.text},
                       {"token_ids", token_ids},
                       {"finish_reason", Name(answer.finish_reason)},
                       {"ttft_ms", answer.first_token_seconds * 1000},
                       {"decode_tokens_per_s", answer.decode_tokens_per_second()},
                       {"prompt_tokens_per_s", answer.prompt_tokens_per_second()},
                       {"seed", flags.sampling.params.seed}};
  if (answer.stop_string) summary["stop_string"] = *answer.stop_string;
  if (flags.sampling.params.logprobs > 0) summary["logprobs"] = LogprobsOf(answer);
  ordered_json sampling;
  WriteSettings(SettingGroup::kSampling, {.sampling = &flags.sampling.params}, &sampling);
  summary["sampling"] = std::move(sampling);
  if (flags.sampling.params.max_draft_tokens > 0) {
    const SequenceMetrics metrics = engine.metrics();
    summary["drafted_tokens"] = metrics.drafted_tokens;
    summary["accepted_tokens"] = metrics.accepted_tokens;
  }
  AddEngineFigures(engine, &summary);
  return summary;
}

std::string Figures(const Answer& answer, const SequenceMetrics& metrics) {
  return fmt::format(
      "{} prompt tokens at {:.0f} tok/s, first token after {:.0f} ms; {} new tokens at {:.1f} "
      "tok/s ({}); "
      "{} tokens resident, {} forgotten",
      Grouped(answer.prompt_tokens), answer.prompt_tokens_per_second(),
      answer.first_token_seconds * 1000, Grouped(static_cast<std::int64_t>(answer.tokens.size())),
      answer.decode_tokens_per_second(), Name(answer.finish_reason),
      Grouped(metrics.resident_tokens), Grouped(metrics.forgotten_tokens));
}

// Says that a prompt was too long for the cache; empty: it was not. `begun` is how things stood
// when the answer's first token had been read, which is when the cache has come down to its size.
std::string ForgottenNote(std::int64_t prompt_tokens, const SequenceMetrics& begun) {
  const std::int64_t forgotten =
      std::min(prompt_tokens, begun.logical_tokens - begun.resident_tokens);
  if (forgotten <= 0) return "";
  const std::int64_t stored = std::min(forgotten, begun.recall_stored_tokens);
  std::string where;
  if (stored == forgotten) where = ", and wait in the second tier";
  if (stored > 0 && stored < forgotten)
    where =
        fmt::format("; {} of them wait in the second tier, whose limit is spent", Grouped(stored));
  return fmt::format(
      "carousel: note: {} of the prompt's {} tokens were no longer in the cache when the answer "
      "began{}; a larger --max-cache-size keeps more\n",
      Grouped(forgotten), Grouped(prompt_tokens), where);
}

}  // namespace

int RunGenerate(const GenerateFlags& flags, Backend* backend, Console* console) {
  std::optional<JsonLines> json;
  if (!flags.json.empty()) json.emplace(flags.json, console->out.fd());
  Request request{.max_new_tokens = flags.sampling.max_new_tokens,
                  .ignore_end_tokens = flags.ignore_eos,
                  .sampling = flags.sampling.params};
  const Prompt prompt(flags);

  const auto [tokenizer, engine] = Load(backend, flags.model, flags.config, &console->err);
  Interrupt interrupt;
  interrupt.Watch(engine.get());
  PromptEncoder encoder(*tokenizer);
  prompt.Fill(&encoder, &request);
  const bool shown = flags.json != "-";
  std::int64_t sampled = 0;
  SequenceMetrics begun;
  const Answer answer = RunRequest(engine.get(), encoder, std::move(request), prompt.Stops(),
                                   {.show =
                                        [&](std::string_view part) {
                                          if (shown) console->out.Write(part);
                                        },
                                    .step =
                                        [&](const StepResult& step) {
                                          if (step.sampled) ++sampled;
                                          if (sampled <= 2) begun = engine->metrics();
                                        },
                                    .is_cancelled = [&] { return interrupt.raised(); }});
  if (shown && !answer.text.ends_with('\n')) console->out.Write("\n");
  console->err.TryWrite(ForgottenNote(answer.prompt_tokens, begun));
  console->err.TryWrite(RecallNotice().Once(*engine));
  if (console->err.is_terminal())
    console->err.TryWrite(console->err.Dimmed(Figures(answer, engine->metrics())) + "\n");
  if (json) {
    json->Write(Summary(answer, flags, *engine));
    json->Close();
  }
  return interrupt.raised() ? interrupt.exit_status() : 0;
}

}  // namespace carousel
