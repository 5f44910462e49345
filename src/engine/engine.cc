// SPDX-License-Identifier: Apache-2.0
#include "carousel/engine.h"

#include <fmt/format.h>

#include <algorithm>
#include <atomic>
#include <cmath>
#include <limits>
#include <utility>

#include "base/check.h"
#include "base/clock.h"
#include "base/parallel.h"
#include "carousel/error.h"
#include "engine/layer_attention.h"
#include "engine/logits.h"
#include "engine/sampler.h"
#include "engine/sequence.h"
#include "engine/settings.h"
#include "engine/shared_cache.h"

namespace carousel {
namespace {

void RequireTokens(std::string_view field, std::span<const TokenId> tokens,
                   std::int64_t vocabulary) {
  for (const TokenId token : tokens) {
    if (token < 0 || token >= vocabulary) {
      throw Error(
          ErrorCode::kInvalidArgument, field,
          fmt::format("token {} is outside the vocabulary [0, {}); use this model's tokenizer",
                      token, vocabulary));
    }
  }
}

// `logits`, of the next word after `tokens` tokens of the sequence, give no distribution.
[[noreturn]] void FailLogits(std::span<const float> logits, std::int64_t tokens) {
  const auto bad = std::find_if(logits.begin(), logits.end(), [](float logit) {
    return !(logit < std::numeric_limits<float>::infinity());  // true for NaN
  });
  const std::string what = bad == logits.end()
                               ? "every logit is -infinity"
                               : fmt::format("the logit of word {} is {}", bad - logits.begin(),
                                             std::isnan(*bad) ? "NaN" : "infinite");
  throw Error(ErrorCode::kModel, "model",
              fmt::format("after {} tokens of the sequence {}, so there is no next word; compute "
                          "in float32 (--precision f32), or import the model again",
                          tokens, what));
}

// What a commit has left half done cannot go on.
void RefuseBroken(bool broken) {
  if (!broken) return;
  throw Error(ErrorCode::kOutOfMemory, "sequence",
              "there was no memory to finish the last step; reset the sequence first");
}

// The running request and what it has left to do.
struct RunningRequest {
  Request request;
  std::size_t read = 0;             // prompt tokens already given to the model
  bool begins_with_unread = false;  // the prompt's first token is the last answer's last
  std::int64_t generated = 0;
  std::optional<Sampler> sampler;  // when something is to be generated
};

// What a step has found and the commit makes lasting.
struct StepOutcome {
  std::vector<TokenId> tokens;     // that were read
  std::int64_t said = 0;           // so many of the first of them are the model's own words
  std::vector<float> last_logits;  // of the last token, while prompts are scored
  StepResult result;
};

class EngineImpl final : public Engine {
 public:
  EngineImpl(std::unique_ptr<Model> model, const EngineSettings& settings)
      : model_(std::move(model)),
        shared_(settings, model_->spec().layers),
        sequence_(&shared_),
        attention_(&shared_) {}

  const Model& model() const override { return *model_; }
  const EngineConfig& config() const override { return settings().config; }
  std::string rotation_reason() const override { return settings().rotation_reason; }

  void Submit(Request request) override;
  bool HasWork() const override { return running_.has_value(); }
  StepResult Step() override;
  void Cancel() noexcept override { cancelled_.store(true); }
  void Reset() override;
  EngineMetrics metrics() const override;
  void GatherAttention(bool gather) override { sequence_.GatherAttention(gather); }
  std::int64_t cache_groups() const override { return shared_.groups(); }
  std::vector<BlockAttention> GatheredAttention(std::int64_t group) const override {
    return sequence_.GatheredAttention(group);
  }

 private:
  const EngineSettings& settings() const { return shared_.settings(); }
  void PinSpans(const Request& request);
  Sampler MakeSampler(const Request& request) const;
  bool EndsAnswer(TokenId token) const;
  std::int64_t Schedule() const;
  std::int64_t PromptLeft() const {
    return static_cast<std::int64_t>(running_->request.prompt.size() - running_->read);
  }
  StepResult CancelRunning();
  void Run(StepOutcome* outcome);
  std::span<const float> Forward(StepOutcome* outcome);
  void Score(std::span<const float> logits, StepOutcome* outcome);
  void Choose(std::span<const float> row, StepResult* result);
  void Commit(StepOutcome* outcome);
  void Accept(StepResult* result);
  void Finish(FinishReason reason, StepResult* result);

  std::unique_ptr<Model> model_;
  SharedCache shared_;
  Sequence sequence_;
  LayerAttention attention_;
  std::optional<RunningRequest> running_;
  std::optional<TokenId> unread_;       // sampled, not yet given to the model
  std::vector<float> previous_logits_;  // of the last token read, while prompts are scored
  LogitsSummary summary_;               // of the last step's last row
  std::atomic<bool> cancelled_ = false;
  bool broken_ = false;  // a commit failed half-way
  EngineMetrics metrics_;
};

void EngineImpl::Submit(Request request) {
  if (HasWork()) {
    throw Error(ErrorCode::kInvalidArgument, "prompt",
                "another request is running; step until it is done, or cancel it and step once");
  }
  RefuseBroken(broken_);
  Validate(request.sampling);
  if (request.prompt.empty()) {
    throw Error(ErrorCode::kInvalidArgument, "prompt", "there are no tokens; give at least one");
  }
  const std::int64_t vocabulary = model_->spec().vocabulary_size;
  RequireTokens("prompt", request.prompt, vocabulary);
  RequireTokens("forced_answer", request.forced_answer, vocabulary);
  RequireTokens("stop_tokens", request.stop_tokens, vocabulary);
  if (request.max_new_tokens < 0) {
    throw Error(ErrorCode::kInvalidArgument, "max_new_tokens",
                fmt::format("{} is negative; use 0 or more", request.max_new_tokens));
  }
  if (!request.forced_answer.empty())
    request.max_new_tokens = static_cast<std::int64_t>(request.forced_answer.size());
  PinSpans(request);
  running_.emplace();
  cancelled_.store(false);
  if (request.max_new_tokens > 0) running_->sampler = MakeSampler(request);
  if (unread_) {
    request.prompt.insert(request.prompt.begin(), *unread_);
    running_->begins_with_unread = true;
    previous_logits_.clear();
    unread_.reset();
  }
  running_->request = std::move(request);
}

// The request's sampler, which has seen of the history and the prompt what counts as repetition.
Sampler EngineImpl::MakeSampler(const Request& request) const {
  Sampler sampler(request.sampling);
  for (const TokenId token : model_->spec().end_tokens) sampler.Exempt(token);
  for (const TokenId token : request.stop_tokens) sampler.Exempt(token);
  const std::int64_t window = request.sampling.penalty_window;
  if (request.penalise_prompt) {
    for (const TokenId token : sequence_.LastTokens(window)) sampler.See(token);
  } else {
    // What earlier answers ended with (a full stop) is on the way to the end of this one. Where a
    // token is unread, the last answer was cut short.
    std::vector<TokenId> endings = sequence_.LastOfAnswers();
    if (unread_ && !endings.empty()) endings.pop_back();
    for (const TokenId token : endings) sampler.Exempt(token);
    for (const TokenId token : sequence_.LastSaid(window)) sampler.See(token);
  }
  if (unread_) sampler.See(*unread_);
  if (request.penalise_prompt) {
    for (const TokenId token : request.prompt) sampler.See(token);
  }
  return sampler;
}

void EngineImpl::PinSpans(const Request& request) {
  const std::int64_t first = sequence_.tables().logical_length().value + (unread_ ? 1 : 0);
  const auto tokens = static_cast<std::int64_t>(request.prompt.size());
  std::vector<TokenSpan> spans;  // in the stream
  for (const TokenSpan& span : request.pinned) {
    if (span.begin < 0 || span.begin >= span.end || span.end > tokens) {
      throw Error(ErrorCode::kInvalidArgument, "pinned",
                  fmt::format("[{}, {}) is not a part of the prompt's {} tokens; use 0 <= begin < "
                              "end <= {}",
                              span.begin, span.end, tokens, tokens));
    }
    spans.push_back({.begin = first + span.begin, .end = first + span.end});
  }
  sequence_.eviction().Pin(spans);
}

// How many tokens the next step reads: one while decoding; a chunk of the prompt that ends on a
// block's boundary while more follows, so that evictions between chunks find full blocks.
std::int64_t EngineImpl::Schedule() const {
  const std::int64_t left = PromptLeft();
  if (left == 0) return 1;
  std::int64_t tokens = std::min(left, config().chunk_size);
  const std::int64_t block_size = config().cache.block_size;
  const std::int64_t beyond = (sequence_.tables().logical_length().value + tokens) % block_size;
  if (tokens < left && beyond < tokens) tokens -= beyond;
  return sequence_.tables().LimitStep(tokens);
}

// Plans and runs the next tokens; returns the wanted logits.
std::span<const float> EngineImpl::Forward(StepOutcome* outcome) {
  const RunningRequest& running = *running_;
  const std::int64_t tokens = Schedule();
  const bool is_prompt = PromptLeft() > 0;
  if (is_prompt) {
    const auto first = running.request.prompt.begin() + static_cast<std::ptrdiff_t>(running.read);
    outcome->tokens.assign(first, first + tokens);
    outcome->said = running.read == 0 && running.begins_with_unread ? 1 : 0;
  } else {
    outcome->tokens.assign(1, *unread_);
    outcome->said = 1;
  }
  const StepPlan& plan = sequence_.Plan({.tokens = tokens,
                                         .is_prompt = is_prompt,
                                         .prompt_left = is_prompt ? PromptLeft() - tokens : 0});
  std::vector<std::int64_t> logit_rows;
  for (std::int64_t i = running.request.score_prompt && is_prompt ? 0 : tokens - 1; i < tokens;
       ++i) {
    logit_rows.push_back(i);
  }
  attention_.Begin(&sequence_);
  const RowRange range{.first_row = 0, .rows = tokens};
  const auto begin = Clock::now();
  const std::span<const float> logits = model_->Forward({.token_ids = outcome->tokens,
                                                         .position_ids = plan.position_ids,
                                                         .logit_rows = logit_rows,
                                                         .sequences = {&range, 1}},
                                                        attention_);
  metrics_.forward_seconds += SecondsSince(begin);
  if (is_prompt && running.request.score_prompt) Score(logits, outcome);
  outcome->result.tokens_processed = tokens;
  outcome->result.evicted_tokens = plan.evicted_tokens;
  return logits;
}

// Row i of the logits predicts token i + 1; the last row waits for what comes next.
void EngineImpl::Score(std::span<const float> logits, StepOutcome* outcome) {
  const std::vector<TokenId>& tokens = outcome->tokens;
  const auto vocabulary = static_cast<std::size_t>(model_->spec().vocabulary_size);
  const std::int64_t tokens_before = sequence_.tables().logical_length().value - std::ssize(tokens);
  const auto row_before = [&](std::size_t i) {
    return i == 0 ? std::span<const float>(previous_logits_)
                  : logits.subspan((i - 1) * vocabulary, vocabulary);
  };
  const std::size_t first = previous_logits_.empty() ? 1 : 0;
  std::vector<double>& nats = outcome->result.negative_log_likelihood;
  nats.resize(tokens.size() - first);
  ParallelFor(std::ssize(nats), [&](std::int64_t index) {
    const std::size_t i = first + static_cast<std::size_t>(index);
    const auto row = row_before(i);
    nats[static_cast<std::size_t>(index)] =
        LogSumExp(row) - static_cast<double>(row[static_cast<std::size_t>(tokens[i])]);
  });
  const auto bad =
      std::find_if(nats.begin(), nats.end(), [](double value) { return std::isnan(value); });
  if (bad != nats.end()) {
    const std::size_t i = first + static_cast<std::size_t>(bad - nats.begin());
    FailLogits(row_before(i), tokens_before + static_cast<std::int64_t>(i));
  }
  const auto last = logits.subspan((tokens.size() - 1) * vocabulary, vocabulary);
  outcome->last_logits.assign(last.begin(), last.end());
}

// `row` is what summary_ is of.
void EngineImpl::Choose(std::span<const float> row, StepResult* result) {
  RunningRequest& running = *running_;
  const auto& forced = running.request.forced_answer;
  if (running.request.keep_logits) result->logits.assign(row.begin(), row.end());
  result->sampled = running.sampler->Choose(
      row, summary_,
      forced.empty() ? std::nullopt
                     : std::optional(forced[static_cast<std::size_t>(running.generated)]));
}

// The chosen token becomes part of the answer.
void EngineImpl::Accept(StepResult* result) {
  RunningRequest& running = *running_;
  const TokenId token = result->sampled->token;
  running.sampler->Accept(token);
  ++running.generated;
  const bool may_end =
      running.request.forced_answer.empty() || running.generated == running.request.max_new_tokens;
  unread_.reset();
  if (may_end && EndsAnswer(token)) return Finish(FinishReason::kStop, result);
  unread_ = token;
  if (running.generated >= running.request.max_new_tokens) Finish(FinishReason::kLength, result);
}

bool EngineImpl::EndsAnswer(TokenId token) const {
  const Request& request = running_->request;
  const auto is_in = [token](const std::vector<TokenId>& ends) {
    return std::find(ends.begin(), ends.end(), token) != ends.end();
  };
  return is_in(request.stop_tokens) ||
         (!request.ignore_end_tokens && is_in(model_->spec().end_tokens));
}

void EngineImpl::Finish(FinishReason reason, StepResult* result) {
  result->finish_reason = reason;
  // Of a cancelled prompt the rest never came.
  sequence_.eviction().TrimPins(sequence_.tables().logical_length().value);
  running_.reset();
}

StepResult EngineImpl::CancelRunning() {
  StepResult result;
  // Of a prompt of which nothing was read, the last answer's token waits on.
  if (running_->read == 0 && running_->begins_with_unread)
    unread_ = running_->request.prompt.front();
  Finish(FinishReason::kCancelled, &result);
  return result;
}

// All of a step that may fail: the model's pass, and what its logits say.
void EngineImpl::Run(StepOutcome* outcome) {
  const std::span<const float> logits = Forward(outcome);
  // The last row tells of the whole step, as every token attends to those before it: what is not a
  // number ends here, before evictions are chosen by it.
  const auto last_row = logits.last(static_cast<std::size_t>(model_->spec().vocabulary_size));
  Summarise(last_row, &summary_);
  if (!summary_.usable()) FailLogits(last_row, sequence_.tables().logical_length().value);
  const std::int64_t prompt_left = PromptLeft();
  const bool is_last = prompt_left == 0 || prompt_left == std::ssize(outcome->tokens);
  if (is_last && running_->request.max_new_tokens > 0) Choose(last_row, &outcome->result);
}

// What the step has found becomes the sequence's and the request's state.
void EngineImpl::Commit(StepOutcome* outcome) {
  StepResult& result = outcome->result;
  sequence_.Commit(outcome->tokens, outcome->said);
  if (PromptLeft() > 0) running_->read += outcome->tokens.size();
  // The logits of a token that has passed since score nothing.
  previous_logits_ = std::move(outcome->last_logits);
  metrics_.max_resident_tokens =
      std::max(metrics_.max_resident_tokens, sequence_.resident_tokens());
  if (result.evicted_tokens > 0) ++metrics_.evictions;
  if (const std::int64_t window = model_->spec().trained_window; window > 0) {
    const std::int64_t last = sequence_.plan().position_ids.back();
    metrics_.tokens_past_window +=
        std::clamp<std::int64_t>(last + 1 - window, 0, sequence_.plan().tokens);
  }
  if (result.sampled) {
    previous_logits_.clear();
    Accept(&result);
  } else if (PromptLeft() == 0) {
    Finish(FinishReason::kLength, &result);
  }
}

StepResult EngineImpl::Step() {
  RefuseBroken(broken_);
  CAROUSEL_CHECK(HasWork());
  if (cancelled_.exchange(false)) return CancelRunning();
  StepOutcome outcome;
  try {
    Run(&outcome);
  } catch (...) {
    sequence_.Abandon();
    throw;
  }
  try {
    Commit(&outcome);
  } catch (...) {
    broken_ = true;
    running_.reset();
    throw;
  }
  return std::move(outcome.result);
}

void EngineImpl::Reset() {
  running_.reset();
  unread_.reset();
  previous_logits_.clear();
  sequence_.Clear();
  broken_ = false;
}

EngineMetrics EngineImpl::metrics() const {
  EngineMetrics metrics = metrics_;
  metrics.logical_tokens = sequence_.tables().logical_length().value;
  metrics.resident_tokens = sequence_.resident_tokens();
  metrics.evicted_tokens = sequence_.evicted_tokens();
  metrics.forgotten_tokens = sequence_.forgotten_tokens();
  metrics.requantisation_error = sequence_.requantisation_error();
  metrics.cache_bytes = shared_.pools().bytes_in_use();
  metrics.reserved_bytes = shared_.pools().bytes_reserved() + sequence_.open_bytes();
  metrics.cache_bytes_per_token = shared_.pools().bytes_per_token();
  metrics.attention_seconds = attention_.seconds();
  if (const RecallState* recall = sequence_.recall(); recall != nullptr) {
    metrics.recall_stored_tokens = recall->store().stored_tokens();
    metrics.recall_dropped_tokens = recall->store().dropped_tokens();
    metrics.recall_bytes = recall->store().bytes();
    metrics.recall_refused_growths = recall->store().refused_growths();
    metrics.recall_limited_by = recall->store().limited_by();
    metrics.recalled_blocks = recall->recalled_blocks();
    metrics.promoted_blocks = sequence_.promoted_blocks();
    metrics.recall_seconds = recall->seconds();
  }
  metrics.rotation = settings().rules.rotation;
  metrics.positions = sequence_.tables().mode();
  return metrics;
}

}  // namespace

std::string_view Name(FinishReason value) {
  switch (value) {
    case FinishReason::kNone:
      return "";
    case FinishReason::kStop:
      return "stop";
    case FinishReason::kLength:
      return "length";
    case FinishReason::kCancelled:
      return "cancelled";
  }
  return "";
}

std::unique_ptr<Engine> Engine::Create(std::unique_ptr<Model> model, const EngineConfig& config) {
  EngineSettings settings = Settle(*model, config);
  return std::make_unique<EngineImpl>(std::move(model), std::move(settings));
}

}  // namespace carousel
