// SPDX-License-Identifier: Apache-2.0
// carousel batch: many requests out of a file, several at once, one line of JSON for each.
#include <fmt/format.h>

#include <algorithm>
#include <ctime>
#include <map>
#include <nlohmann/json.hpp>
#include <optional>
#include <string_view>
#include <utility>

#include "answers/answer.h"
#include "answers/message_prompt.h"
#include "answers/prompt_file.h"
#include "api/batch_line.h"
#include "base/clock.h"
#include "base/lines.h"
#include "carousel/engine.h"
#include "carousel/error.h"
#include "cli/batch_output.h"
#include "cli/commands.h"
#include "cli/interrupt.h"
#include "cli/numbers.h"
#include "cli/progress.h"
#include "text/turn_format.h"

namespace carousel {
namespace {

// The requests of a file that are still to be answered, one after another.
class RequestFile {
 public:
  RequestFile(std::string text, BatchDefaults defaults)
      : text_(std::move(text)), rest_(text_), defaults_(std::move(defaults)) {}
  RequestFile(const RequestFile&) = delete;
  RequestFile& operator=(const RequestFile&) = delete;

  // nullopt: there are no more. Empty lines are none.
  std::optional<BatchLine> Next() {
    while (!rest_.empty()) {
      const std::string_view line = TakeLine(&rest_);
      ++number_;
      if (!IsBlankLine(line)) return ReadBatchLine(line, number_, defaults_);
    }
    return std::nullopt;
  }

  std::int64_t CountLines() const {
    std::int64_t lines = 0;
    for (std::string_view rest = text_; !rest.empty();) {
      if (!IsBlankLine(TakeLine(&rest))) ++lines;
    }
    return lines;
  }

 private:
  const std::string text_;
  std::string_view rest_;
  BatchDefaults defaults_;
  std::int64_t number_ = 0;
};

// A line that is being answered, with what has come of it.
struct BatchJob {
  BatchLine line;
  std::int64_t prompt_tokens = 0;
  std::vector<Answer> answers;  // [as many as it asks for]
  std::int64_t unanswered = 0;
  std::vector<SequenceId> open;  // of its answers, and of the prompt that they share
};

// One answer of it, or the reading of the prompt for several.
struct BatchPart {
  std::shared_ptr<BatchJob> job;
  std::int64_t index = 0;  // of the answer; -1: the reading
  std::optional<AnswerBuilder> builder;
  RequestId request;
};

class Batch {
 public:
  Batch(const BatchFlags& flags, RequestFile* requests, Engine* engine, PromptEncoder* encoder,
        BatchOutput* out, Progress* progress)
      : flags_(flags),
        requests_(*requests),
        engine_(*engine),
        encoder_(*encoder),
        out_(*out),
        progress_(*progress),
        total_(requests->CountLines()) {}

  // Until all is answered, or `interrupt` is raised.
  void Run(const Interrupt& interrupt) {
    while (!interrupt.raised()) {
      while (jobs_ < flags_.config.scheduler.max_running && StartNext()) {
      }
      if (jobs_ == 0) return;
      for (StepOutput& output : engine_.Step()) Take(&output);
      ShowProgress();
    }
  }

  std::string Summary() const {
    const double seconds = SecondsSince(begin_);
    return fmt::format(
        "{} answered, {} failed, {} found from before; {} prompt and {} new tokens in {:.1f} s "
        "({:.1f} new tok/s)",
        Grouped(answered_), Grouped(failed_), Grouped(found_), Grouped(prompt_tokens_),
        Grouped(new_tokens_), seconds,
        seconds > 0 ? static_cast<double>(new_tokens_) / seconds : 0.0);
  }

 private:
  // False: there are no more lines.
  bool StartNext() {
    std::optional<BatchLine> line = requests_.Next();
    if (!line) return false;
    if (out_.TakeFound(line->custom_id)) {
      ++found_;
    } else if (!line->request) {
      Fail(*line, line->problem, /*is_ours=*/false);
    } else {
      Start(*std::move(line));
    }
    return true;
  }

  void Start(BatchLine line) {
    const auto job = std::make_shared<BatchJob>();
    job->line = std::move(line);
    const BatchRequest& asked = *job->line.request;
    job->answers.resize(static_cast<std::size_t>(asked.answers));
    job->unanswered = asked.answers;
    ++jobs_;
    const SequenceId sequence = engine_.Open();
    job->open.push_back(sequence);
    try {
      Request request = WithoutPrompt(asked);
      request.prompt = PromptOf(asked);
      job->prompt_tokens = std::ssize(request.prompt);
      if (asked.answers > 1) {
        request.max_new_tokens = 0;
        Submit({.job = job, .index = -1}, sequence, std::move(request));
      } else {
        Ask(job, 0, sequence, std::move(request));
      }
    } catch (const Error& error) {
      GiveUp(job.get(), error.what(), /*is_ours=*/false);
    }
  }

  // One answer in a sequence.
  void Ask(const std::shared_ptr<BatchJob>& job, std::int64_t index, SequenceId sequence,
           Request request) {
    BatchPart part{.job = job, .index = index};
    part.builder.emplace(encoder_, StopsOf(*job->line.request), &request);
    Submit(std::move(part), sequence, std::move(request));
  }

  void Submit(BatchPart part, SequenceId sequence, Request request) {
    part.request = engine_.Submit(sequence, std::move(request));
    parts_.emplace(sequence, std::move(part));
  }

  // The prompt has been read: each answer goes on from there in a fork.
  void AskAll(const std::shared_ptr<BatchJob>& job, SequenceId sequence) {
    for (std::int64_t index = 0; index < std::ssize(job->answers); ++index) {
      const SequenceId fork = engine_.Fork(sequence);
      job->open.push_back(fork);
      Request request = WithoutPrompt(*job->line.request);
      request.sampling.seed += static_cast<std::uint64_t>(index);
      Ask(job, index, fork, std::move(request));
    }
  }

  // The chat template, for requests that need it.
  const TurnFormat& Turns() {
    if (!turns_) turns_ = LoadTurns(flags_.model.directory, "or give raw prompts and --raw");
    return *turns_;
  }

  bool UsesTemplate(const BatchRequest& request) const {
    return std::holds_alternative<std::vector<Message>>(request.prompt) ||
           (std::holds_alternative<std::string>(request.prompt) && !request.raw);
  }

  AnswerStops StopsOf(const BatchRequest& request) {
    const bool ends_turns = UsesTemplate(request) && !request.ignore_end_tokens;
    return {.strings = request.stops,
            .end_of_turn = ends_turns ? Turns().end_of_turn() : std::string()};
  }

  Request WithoutPrompt(const BatchRequest& asked) const {
    return {.prompt = {},
            .penalise_prompt = !UsesTemplate(asked),
            .max_new_tokens = asked.max_new_tokens,
            .ignore_end_tokens = asked.ignore_end_tokens,
            .sampling = asked.sampling};
  }

  std::vector<TokenId> PromptOf(const BatchRequest& asked) {
    if (const auto* tokens = std::get_if<std::vector<TokenId>>(&asked.prompt)) return *tokens;
    if (const auto* messages = std::get_if<std::vector<Message>>(&asked.prompt))
      return EncodeMessages(*messages, Turns(), &encoder_);
    const auto& text = std::get<std::string>(asked.prompt);
    if (asked.raw) return encoder_.tokenizer().Encode(text, {.add_special_tokens = true});
    return EncodeMessages({{"user", text}}, Turns(), &encoder_);
  }

  void Take(StepOutput* output) {
    const auto found = parts_.find(output->sequence);
    if (found == parts_.end()) return;  // its line was given up in this step
    const std::shared_ptr<BatchJob> job = found->second.job;
    try {
      if (output->failure) std::rethrow_exception(output->failure);
      TakeStep(found, output);
    } catch (const std::bad_alloc&) {
      GiveUp(job.get(), "out of memory; use a smaller --max-cache-size or --concurrency",
             /*is_ours=*/true);
    } catch (const Error& error) {
      if (error.field() == "out") throw;
      GiveUp(job.get(), error.what(), /*is_ours=*/true);
    }
  }

  void TakeStep(std::map<SequenceId, BatchPart>::iterator found, StepOutput* output) {
    BatchPart& part = found->second;
    const bool has_ended = output->result.finish_reason != FinishReason::kNone;
    if (part.builder) part.builder->Take(std::move(output->result));
    if (!has_ended) return;
    const std::shared_ptr<BatchJob> job = part.job;
    if (!part.builder) {
      parts_.erase(found);
      return AskAll(job, output->sequence);
    }
    part.builder->Finish();
    Answer& answer = job->answers[static_cast<std::size_t>(part.index)];
    answer = part.builder->answer();
    answer.prompt_tokens = job->prompt_tokens;
    new_tokens_ += std::ssize(answer.tokens);
    parts_.erase(found);
    if (--job->unanswered > 0) return;
    prompt_tokens_ += job->prompt_tokens;
    out_.Write(AnswerLine(job->line, job->answers, engine_.metrics(output->sequence),
                          engine_.model().spec().name, std::time(nullptr)));
    ++answered_;
    Close(job.get());
  }

  void Close(BatchJob* job) {
    for (const SequenceId sequence : job->open) {
      engine_.Close(sequence);
      parts_.erase(sequence);
    }
    --jobs_;
  }

  void GiveUp(BatchJob* job, std::string_view problem, bool is_ours) {
    Close(job);
    Fail(job->line, problem, is_ours);
  }

  void Fail(const BatchLine& line, std::string_view problem, bool is_ours) {
    out_.Write(ErrorLine(line, problem, is_ours));
    ++failed_;
  }

  void ShowProgress() {
    if (!progress_.IsDue()) return;
    const std::int64_t done = answered_ + failed_ + found_;
    const double seconds = SecondsSince(begin_);
    std::string text = fmt::format("{} of {} requests", Grouped(done), Grouped(total_));
    if (failed_ > 0) text += fmt::format(", {} failed", Grouped(failed_));
    if (const std::int64_t rows = engine_.metrics().rows; rows > 0)
      text += fmt::format(", {:.0f} tok/s", static_cast<double>(rows) / std::max(seconds, 1e-3));
    if (const std::int64_t here = answered_ + failed_; here > 0) {
      const auto left = static_cast<std::int64_t>(seconds / static_cast<double>(here) *
                                                  static_cast<double>(total_ - done));
      text += fmt::format(", {}:{:02} left", left / 60, left % 60);
    }
    progress_.Show(std::move(text));
  }

  const BatchFlags& flags_;
  RequestFile& requests_;
  Engine& engine_;
  PromptEncoder& encoder_;
  BatchOutput& out_;
  Progress& progress_;
  std::optional<TurnFormat> turns_;
  std::map<SequenceId, BatchPart> parts_;
  std::int64_t jobs_ = 0;  // lines that are being answered
  Clock::time_point begin_ = Clock::now();
  std::int64_t total_;
  std::int64_t answered_ = 0;
  std::int64_t failed_ = 0;
  std::int64_t found_ = 0;
  std::int64_t prompt_tokens_ = 0;
  std::int64_t new_tokens_ = 0;
};

}  // namespace

int RunBatch(const BatchFlags& flags, Backend* backend, Console* console) {
  RequestFile requests(ReadPromptFile(flags.requests),
                       {.sampling = flags.sampling.params,
                        .stops = flags.sampling.stops,
                        .max_new_tokens = flags.sampling.max_new_tokens,
                        .raw = flags.raw});
  BatchOutput out(flags.out, console->out.fd());
  std::unique_ptr<Model> model = backend->LoadModel(flags.model);
  const std::unique_ptr<Tokenizer> tokenizer =
      backend->LoadTokenizer(flags.model, model->spec().vocabulary_size);
  const std::unique_ptr<Engine> engine = Engine::Create(std::move(model), flags.config);
  TellYieldedSizes(flags.config, engine->config(), engine->model().spec(), &console->err);
  Interrupt interrupt;
  interrupt.Watch();
  PromptEncoder encoder(*tokenizer);
  Progress progress(&console->err);
  Batch batch(flags, &requests, engine.get(), &encoder, &out, &progress);
  batch.Run(interrupt);
  progress.Hide();
  out.Close();
  console->err.TryWrite(fmt::format("carousel: {}\n", batch.Summary()));
  return interrupt.raised() ? interrupt.exit_status() : 0;
}

}  // namespace carousel
