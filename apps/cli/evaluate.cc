// SPDX-License-Identifier: Apache-2.0
// carousel evaluate: many conversations, each from an empty cache, one line of JSON per turn.
#include <fmt/format.h>

#include <algorithm>
#include <array>
#include <nlohmann/json.hpp>
#include <optional>
#include <utility>

#include "answers/answer.h"
#include "answers/prompt_file.h"
#include "answers/run_summary.h"
#include "base/clock.h"
#include "carousel/error.h"
#include "cli/commands.h"
#include "cli/evaluation_tasks.h"
#include "cli/interrupt.h"
#include "cli/json_lines.h"
#include "cli/logits_file.h"
#include "cli/progress.h"
#include "cli/recall_notice.h"
#include "engine/logits.h"
#include "text/turn_format.h"

namespace carousel {
namespace {

using nlohmann::ordered_json;

// What a turn's steps showed, beside the answer itself. Peaks are of the pools after each step: a
// step evicts before it allocates, so between steps there is never more.
struct TurnFigures {
  std::vector<double> prompt_nll;
  std::vector<TokenId> likeliest;  // at each token of a scored answer
  std::int64_t peak_cache_bytes = 0;
  std::int64_t peak_resident_tokens = 0;
  std::int64_t peak_recall_bytes = 0;  // of the second tier, which is not in peak_cache_bytes
};

class Evaluation {
 public:
  Evaluation(const EvaluateFlags& flags, const LoadedEngine& loaded,
             std::optional<TurnFormat> format, const Interrupt& interrupt)
      : flags_(flags),
        tokenizer_(*loaded.tokenizer),
        encoder_(tokenizer_),
        engine_(loaded.engine.get()),
        format_(std::move(format)),
        interrupt_(interrupt) {
    if (!flags.logits.empty()) logits_.emplace(flags.logits);
  }

  // The lines of one turn of `task`; the ones before it have been run.
  ordered_json RunTurn(const EvaluationTask& task, std::size_t index);
  void Close() {
    if (logits_) logits_->Close();
  }

 private:
  bool IsTemplateTurn(const EvaluationTask& task, std::size_t index) const;
  std::vector<TokenId> PromptOf(const EvaluationTask& task, std::size_t index);
  Request RequestOf(const EvaluationTask& task, std::size_t index);
  AnswerStops StopsOf(const EvaluationTask& task, std::size_t index) const;
  void Watch(const StepResult& step, TurnFigures* figures);

  const EvaluateFlags& flags_;
  const Tokenizer& tokenizer_;
  PromptEncoder encoder_;
  SingleSequenceEngine* engine_;
  std::optional<TurnFormat> format_;
  const Interrupt& interrupt_;
  std::optional<LogitsFile> logits_;
};

bool Evaluation::IsTemplateTurn(const EvaluationTask& task, std::size_t index) const {
  return !task.raw && std::holds_alternative<std::string>(task.turns[index].prompt);
}

std::vector<TokenId> Evaluation::PromptOf(const EvaluationTask& task, std::size_t index) {
  const TextOrTokens& prompt = task.turns[index].prompt;
  if (const auto* tokens = std::get_if<std::vector<TokenId>>(&prompt)) return *tokens;
  const auto& text = std::get<std::string>(prompt);
  if (task.raw) return tokenizer_.Encode(text, {.add_special_tokens = index == 0});
  return encoder_.Encode(
      index == 0 ? format_->FirstTurn(std::nullopt, text) : format_->NextTurn(text),
      /*continues_text=*/index > 0);
}

// A scored answer is given as it is. The model's own ends its turn as the chat template does.
AnswerStops Evaluation::StopsOf(const EvaluationTask& task, std::size_t index) const {
  if (task.turns[index].score) return {};
  return {.strings = flags_.sampling.stops,
          .end_of_turn = IsTemplateTurn(task, index) ? format_->end_of_turn() : std::string()};
}

Request Evaluation::RequestOf(const EvaluationTask& task, std::size_t index) {
  const EvaluationTurn& turn = task.turns[index];
  Request request{.prompt = PromptOf(task, index),
                  .penalise_prompt = !IsTemplateTurn(task, index),
                  .max_new_tokens = turn.max_new_tokens.value_or(flags_.sampling.max_new_tokens),
                  .score_prompt = turn.score_prompt,
                  .sampling = flags_.sampling.params};
  if (turn.pin && !request.prompt.empty())
    request.pinned = {{.begin = 0, .end = static_cast<std::int64_t>(request.prompt.size())}};
  if (!turn.score) return request;
  request.keep_logits = true;
  if (const auto* tokens = std::get_if<std::vector<TokenId>>(&*turn.score))
    request.forced_answer = *tokens;
  else
    request.forced_answer = task.raw ? tokenizer_.Encode(std::get<std::string>(*turn.score),
                                                         {.add_special_tokens = false})
                                     : encoder_.EncodeText(std::get<std::string>(*turn.score));
  return request;
}

void Evaluation::Watch(const StepResult& step, TurnFigures* figures) {
  const SequenceMetrics metrics = engine_->metrics();
  figures->peak_cache_bytes = std::max(figures->peak_cache_bytes, metrics.cache_bytes);
  figures->peak_resident_tokens = std::max(figures->peak_resident_tokens, metrics.resident_tokens);
  figures->peak_recall_bytes = std::max(figures->peak_recall_bytes, metrics.recall_bytes);
  figures->prompt_nll.insert(figures->prompt_nll.end(), step.negative_log_likelihood.begin(),
                             step.negative_log_likelihood.end());
  if (step.logits.empty()) return;
  figures->likeliest.push_back(ArgMax(step.logits));
  if (logits_) logits_->Append(step.logits);
}

ordered_json Evaluation::RunTurn(const EvaluationTask& task, std::size_t index) {
  const EvaluationTurn& turn = task.turns[index];
  const std::int64_t first_row = logits_ ? logits_->rows() : 0;
  TurnFigures figures;
  const Answer answer = RunRequest(engine_, encoder_, RequestOf(task, index), StopsOf(task, index),
                                   {.step = [&](const StepResult& step) { Watch(step, &figures); },
                                    .is_cancelled = [&] { return interrupt_.raised(); }});
  std::vector<TokenId> ids;
  std::vector<double> nll;
  for (const SampledToken& token : answer.tokens) {
    ids.push_back(token.token);
    nll.push_back(-static_cast<double>(token.logprob));
  }
  const SequenceMetrics metrics = engine_->metrics();
  ordered_json line{{"type", "turn"},
                    {"id", task.id},
                    {"turn", index},
                    {"text", answer.text},
                    {"token_ids", ids},
                    {"finish_reason", Name(answer.finish_reason)},
                    {"prompt_tokens", answer.prompt_tokens},
                    {"logical_tokens", metrics.logical_tokens},
                    {"resident_tokens", metrics.resident_tokens},
                    {"peak_resident_tokens", figures.peak_resident_tokens},
                    {"evicted_tokens", metrics.evicted_tokens},
                    {"cache_bytes", metrics.cache_bytes},
                    {"peak_cache_bytes", figures.peak_cache_bytes},
                    {"peak_recall_bytes", figures.peak_recall_bytes},
                    {"prompt_seconds", answer.prompt_seconds},
                    {"decode_seconds", answer.decode_seconds},
                    {"nll", nll}};
  if (turn.score) line["likeliest"] = figures.likeliest;
  if (turn.score && logits_) line["logits_row"] = first_row;
  if (turn.score_prompt) line["prompt_nll"] = figures.prompt_nll;
  return line;
}

// What the engine refuses in a turn, as the file says it: the line, the turn and the member.
Error OfTurn(const Error& error, const EvaluationTask& task, std::size_t turn) {
  constexpr std::array<std::pair<std::string_view, std::string_view>, 4> kMembers = {
      {{"prompt", "prompt"},
       {"forced_answer", "score"},
       {"pinned", "pin"},
       {"max_new_tokens", "max_new_tokens"}}};
  const std::string where = fmt::format("line {}, turn {}", task.line, turn + 1);
  for (const auto& [field, member] : kMembers) {
    if (error.field() != field) continue;
    return {error.code(), "tasks", fmt::format("{}: \"{}\": {}", where, member, error.problem())};
  }
  return {error.code(), error.field(), fmt::format("{}: {}", where, error.problem())};
}

bool NeedsTurnFormat(const std::vector<EvaluationTask>& tasks) {
  return std::any_of(tasks.begin(), tasks.end(), [](const EvaluationTask& task) {
    return !task.raw && std::any_of(task.turns.begin(), task.turns.end(), [](const auto& turn) {
      return std::holds_alternative<std::string>(turn.prompt);
    });
  });
}

}  // namespace

int RunEvaluate(const EvaluateFlags& flags, Backend* backend, Console* console) {
  JsonLines json(flags.json, console->out.fd());
  const std::vector<EvaluationTask> tasks = ParseEvaluationTasks(ReadPromptFile(flags.tasks));
  std::optional<TurnFormat> format;
  if (NeedsTurnFormat(tasks))
    format = LoadTurns(flags.model.directory,
                       R"(or give "raw": true and write the template's marks yourself)");
  const LoadedEngine loaded = Load(backend, flags.model, flags.config, &console->err);
  Interrupt interrupt;
  interrupt.Watch(loaded.engine.get());
  Evaluation evaluation(flags, loaded, std::move(format), interrupt);
  json.Begin();  // its lines name rows of logits, of which there are none any more
  Progress progress(&console->err);
  RecallNotice recall_notice;
  std::int64_t turns = 0;
  const auto begin = Clock::now();
  for (std::size_t i = 0; i < tasks.size() && !interrupt.raised(); ++i) {
    loaded.engine->Reset();
    for (std::size_t turn = 0; turn < tasks[i].turns.size() && !interrupt.raised(); ++turn) {
      progress.Show(fmt::format("conversation {} of {}, turn {} of {}", i + 1, tasks.size(),
                                turn + 1, tasks[i].turns.size()));
      try {
        json.Write(evaluation.RunTurn(tasks[i], turn));
      } catch (const Error& error) {
        if (error.field() == "json" || error.field() == "logits") throw;
        throw OfTurn(error, tasks[i], turn);
      }
      ++turns;
      if (const std::string notice = recall_notice.Once(*loaded.engine); !notice.empty()) {
        progress.Hide();
        console->err.TryWrite(notice);
      }
    }
  }
  progress.Hide();
  evaluation.Close();
  ordered_json summary{{"type", "summary"},
                       {"conversations", tasks.size()},
                       {"turns", turns},
                       {"seconds", SecondsSince(begin)},
                       {"vocabulary_size", loaded.engine->model().spec().vocabulary_size},
                       {"finish_reason", interrupt.raised() ? "cancelled" : "end"}};
  AddEngineFigures(*loaded.engine, &summary);
  json.Write(summary);
  json.Close();
  return interrupt.raised() ? interrupt.exit_status() : 0;
}

}  // namespace carousel
