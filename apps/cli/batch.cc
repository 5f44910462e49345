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
      const std::string_view line = rest_.substr(0, rest_.find('\n'));
      rest_.remove_prefix(std::min(rest_.size(), line.size() + 1));
      ++number_;
      if (line.find_first_not_of(" \t\r") != std::string_view::npos)
        return ReadBatchLine(line, number_, defaults_);
    }
    return std::nullopt;
  }

  std::int64_t CountLines() const {
    std::int64_t lines = 0;
    for (std::string_view rest = text_; !rest.empty();) {
      const std::string_view line = rest.substr(0, rest.find('\n'));
      rest.remove_prefix(std::min(rest.size(), line.size() + 1));
      if (line.find_first_not_of(" \t\r") != std::string_view::npos) ++lines;
    }
    return lines;
  }

 private:
  const std::string text_;
  std::string_view rest_;
  BatchDefaults defaults_;
  std::int64_t number_ = 0;
};

// A request that is being answered.
struct BatchJob {
  BatchLine line;
  AnswerBuilder builder;
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
      while (std::ssize(jobs_) < flags_.config.scheduler.max_running && StartNext()) {
      }
      if (jobs_.empty()) return;
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
  std::int64_t failed() const { return failed_; }

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
    const SequenceId sequence = engine_.Open();
    try {
      Request request = RequestOf(*line.request);
      AnswerBuilder builder(encoder_, StopsOf(*line.request), &request);
      const RequestId id = engine_.Submit(sequence, std::move(request));
      jobs_.try_emplace(
          sequence,
          BatchJob{.line = std::move(line), .builder = std::move(builder), .request = id});
    } catch (const Error& error) {
      engine_.Close(sequence);
      Fail(line, error.what(), /*is_ours=*/false);
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

  Request RequestOf(const BatchRequest& asked) {
    Request request{.prompt = {},
                    .penalise_prompt = !UsesTemplate(asked),
                    .max_new_tokens = asked.max_new_tokens,
                    .ignore_end_tokens = asked.ignore_end_tokens,
                    .sampling = asked.sampling};
    if (const auto* tokens = std::get_if<std::vector<TokenId>>(&asked.prompt)) {
      request.prompt = *tokens;
    } else if (const auto* messages = std::get_if<std::vector<Message>>(&asked.prompt)) {
      request.prompt = EncodeMessages(*messages, Turns(), &encoder_);
    } else {
      const auto& text = std::get<std::string>(asked.prompt);
      request.prompt = asked.raw ? encoder_.tokenizer().Encode(text, {.add_special_tokens = true})
                                 : EncodeMessages({{"user", text}}, Turns(), &encoder_);
    }
    return request;
  }

  void Take(StepOutput* output) {
    const auto found = jobs_.find(output->sequence);
    BatchJob& job = found->second;
    if (output->failure) return GiveUp(found, output->failure);
    const bool has_ended = output->result.finish_reason != FinishReason::kNone;
    job.builder.Take(std::move(output->result));
    if (!has_ended) {
      if (job.builder.must_stop()) engine_.Cancel(job.request);
      return;
    }
    job.builder.Finish();
    const Answer& answer = job.builder.answer();
    prompt_tokens_ += answer.prompt_tokens;
    new_tokens_ += std::ssize(answer.tokens);
    out_.Write(AnswerLine(job.line, answer, engine_.metrics(output->sequence),
                          engine_.model().spec().name, std::time(nullptr)));
    ++answered_;
    engine_.Close(output->sequence);
    jobs_.erase(found);
  }

  void GiveUp(std::map<SequenceId, BatchJob>::iterator job, const std::exception_ptr& failure) {
    std::string problem;
    try {
      std::rethrow_exception(failure);
    } catch (const std::bad_alloc&) {
      problem = "out of memory; use a smaller --max-cache-size, or a smaller --concurrency";
    } catch (const std::exception& error) {
      problem = error.what();
    }
    engine_.Close(job->first);
    Fail(job->second.line, problem, /*is_ours=*/true);
    jobs_.erase(job);
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
    const double forward = engine_.metrics().forward_seconds;
    if (forward > 0) {
      text += fmt::format(", {:.0f} tok/s",
                          static_cast<double>(engine_.metrics().rows) / std::max(seconds, 1e-3));
    }
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
  std::map<SequenceId, BatchJob> jobs_;
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
