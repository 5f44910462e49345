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
#include "engine/logits.h"
#include "engine/sampler.h"
#include "engine/sequence_cache.h"
#include "engine/settings.h"

namespace carousel {
namespace {

// Hands the model's attention to the cache and times it.
class TimedAttention final : public AttentionCallback {
 public:
  TimedAttention(SequenceCache* cache, double* seconds) : cache_(cache), seconds_(seconds) {}
  void Attend(std::int64_t layer, std::int64_t tokens, const float* q, const float* k,
              const float* v, float* out) override {
    const auto begin = Clock::now();
    cache_->Attend(layer, tokens, q, k, v, out);
    *seconds_ += SecondsSince(begin);
  }

 private:
  SequenceCache* cache_;
  double* seconds_;
};

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

// The running request and what it has left to do.
struct RunningRequest {
  Request request;
  std::size_t read = 0;             // prompt tokens already given to the model
  bool begins_with_unread = false;  // the prompt's first token is the last answer's last
  std::int64_t generated = 0;
  std::optional<Sampler> sampler;  // when something is to be generated
};

class EngineImpl final : public Engine {
 public:
  EngineImpl(std::unique_ptr<Model> model, EngineSettings settings)
      : model_(std::move(model)),
        settings_(std::move(settings)),
        cache_(settings_, model_->spec().layers) {}

  const Model& model() const override { return *model_; }
  const EngineConfig& config() const override { return settings_.config; }
  std::string rotation_reason() const override { return settings_.rotation_reason; }

  void Submit(Request request) override;
  bool HasWork() const override { return running_.has_value(); }
  StepResult Step() override;
  void Cancel() noexcept override { cancelled_.store(true); }
  void Reset() override;
  EngineMetrics metrics() const override;
  void GatherAttention(bool gather) override { cache_.GatherAttention(gather); }
  std::int64_t cache_groups() const override { return cache_.tables().groups(); }
  std::vector<BlockAttention> GatheredAttention(std::int64_t group) const override {
    return cache_.GatheredAttention(group);
  }

 private:
  void PinSpans(const Request& request);
  Sampler MakeSampler(const Request& request) const;
  bool EndsAnswer(TokenId token) const;
  std::int64_t Schedule() const;
  std::int64_t PromptLeft() const {
    return static_cast<std::int64_t>(running_->request.prompt.size() - running_->read);
  }
  std::span<const float> Forward(std::int64_t tokens, StepResult* result);
  void Score(std::span<const TokenId> tokens, std::span<const float> logits, StepResult* result);
  void Sample(std::span<const float> row, StepResult* result);
  void Finish(FinishReason reason, StepResult* result);

  std::unique_ptr<Model> model_;
  EngineSettings settings_;
  SequenceCache cache_;
  std::optional<RunningRequest> running_;
  std::optional<TokenId> unread_;       // sampled, not yet given to the model
  std::vector<float> previous_logits_;  // of the last token read, while prompts are scored
  LogitsSummary summary_;               // of the last step's last row
  std::atomic<bool> cancelled_ = false;
  bool broken_ = false;  // a step failed half-way
  EngineMetrics metrics_;
};

void EngineImpl::Submit(Request request) {
  CAROUSEL_CHECK(!HasWork());
  if (broken_) {
    throw Error(ErrorCode::kInvalidArgument, "prompt",
                "the last step failed; reset the sequence first");
  }
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

// The request's sampler, which has seen of the prompt what counts as repetition.
Sampler EngineImpl::MakeSampler(const Request& request) const {
  Sampler sampler(request.sampling);
  for (const TokenId token : model_->spec().end_tokens) sampler.Exempt(token);
  for (const TokenId token : request.stop_tokens) sampler.Exempt(token);
  if (!request.penalise_prompt) return sampler;
  if (unread_) sampler.See(*unread_);
  for (const TokenId token : request.prompt) sampler.See(token);
  return sampler;
}

void EngineImpl::PinSpans(const Request& request) {
  const std::int64_t first = cache_.tables().logical_length().value + (unread_ ? 1 : 0);
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
  cache_.eviction().Pin(spans);
}

// How many tokens the next step reads: one while decoding; a chunk of the prompt that ends on a
// block's boundary while more follows, so that evictions between chunks find full blocks.
std::int64_t EngineImpl::Schedule() const {
  const std::int64_t left = PromptLeft();
  if (left == 0) return 1;
  std::int64_t tokens = std::min(left, settings_.config.chunk_size);
  const std::int64_t block_size = settings_.config.cache.block_size;
  const std::int64_t beyond = (cache_.tables().logical_length().value + tokens) % block_size;
  if (tokens < left && beyond < tokens) tokens -= beyond;
  return cache_.LimitStep(tokens);
}

// Plans and runs the next `tokens` tokens; returns the wanted logits.
std::span<const float> EngineImpl::Forward(std::int64_t tokens, StepResult* result) {
  RunningRequest& running = *running_;
  const bool is_prompt = PromptLeft() > 0;
  const TokenId decoded = unread_.value_or(0);
  const std::span<const TokenId> input =
      is_prompt ? std::span<const TokenId>(running.request.prompt)
                      .subspan(running.read, static_cast<std::size_t>(tokens))
                : std::span<const TokenId>(&decoded, 1);
  const StepPlan& plan = cache_.Plan({.tokens = tokens,
                                      .is_prompt = is_prompt,
                                      .prompt_left = is_prompt ? PromptLeft() - tokens : 0});
  std::vector<std::int64_t> rows;
  for (std::int64_t i = running.request.score_prompt && is_prompt ? 0 : tokens - 1; i < tokens;
       ++i) {
    rows.push_back(i);
  }
  TimedAttention attention(&cache_, &metrics_.attention_seconds);
  const auto begin = Clock::now();
  const std::span<const float> logits = model_->Forward(
      {.token_ids = input, .position_ids = plan.position_ids, .logit_rows = rows}, attention);
  metrics_.forward_seconds += SecondsSince(begin);
  if (is_prompt) {
    running.read += static_cast<std::size_t>(tokens);
    if (running.request.score_prompt) Score(input, logits, result);
  }
  result->tokens_processed = tokens;
  result->evicted_tokens = plan.evicted_tokens;
  return logits;
}

// Row i of the logits predicts token i + 1; the last row waits for what comes next.
void EngineImpl::Score(std::span<const TokenId> tokens, std::span<const float> logits,
                       StepResult* result) {
  const auto vocabulary = static_cast<std::size_t>(model_->spec().vocabulary_size);
  const std::int64_t tokens_before =
      cache_.tables().logical_length().value - static_cast<std::int64_t>(tokens.size());
  const auto row_before = [&](std::size_t i) {
    return i == 0 ? std::span<const float>(previous_logits_)
                  : logits.subspan((i - 1) * vocabulary, vocabulary);
  };
  const std::size_t first = previous_logits_.empty() ? 1 : 0;
  result->negative_log_likelihood.resize(tokens.size() - first);
  ParallelFor(static_cast<std::int64_t>(tokens.size() - first), [&](std::int64_t index) {
    const std::size_t i = first + static_cast<std::size_t>(index);
    const auto row = row_before(i);
    result->negative_log_likelihood[static_cast<std::size_t>(index)] =
        LogSumExp(row) - static_cast<double>(row[static_cast<std::size_t>(tokens[i])]);
  });
  const auto bad =
      std::find_if(result->negative_log_likelihood.begin(), result->negative_log_likelihood.end(),
                   [](double nats) { return std::isnan(nats); });
  if (bad != result->negative_log_likelihood.end()) {
    const std::size_t i =
        first + static_cast<std::size_t>(bad - result->negative_log_likelihood.begin());
    FailLogits(row_before(i), tokens_before + static_cast<std::int64_t>(i));
  }
  const auto last = logits.subspan((tokens.size() - 1) * vocabulary, vocabulary);
  previous_logits_.assign(last.begin(), last.end());
}

// `row` is what summary_ is of.
void EngineImpl::Sample(std::span<const float> row, StepResult* result) {
  RunningRequest& running = *running_;
  const auto& forced = running.request.forced_answer;
  result->sampled = running.sampler->Sample(
      row, summary_,
      forced.empty() ? std::nullopt
                     : std::optional(forced[static_cast<std::size_t>(running.generated)]));
  if (running.request.keep_logits) result->logits.assign(row.begin(), row.end());
  ++running.generated;
  const TokenId token = result->sampled->token;
  const bool may_end = forced.empty() || running.generated == running.request.max_new_tokens;
  unread_.reset();
  if (may_end && EndsAnswer(token)) {
    Finish(FinishReason::kStop, result);
    return;
  }
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
  cache_.eviction().TrimPins(cache_.tables().logical_length().value);
  running_.reset();
}

StepResult EngineImpl::Step() {
  CAROUSEL_CHECK(HasWork());
  StepResult result;
  if (cancelled_.exchange(false)) {
    // Of a prompt of which nothing was read, the last answer's token waits on.
    if (running_->read == 0 && running_->begins_with_unread)
      unread_ = running_->request.prompt.front();
    Finish(FinishReason::kCancelled, &result);
    return result;
  }
  broken_ = true;  // until the step is through
  const std::span<const float> logits = Forward(Schedule(), &result);
  // The last row tells of the whole step, as every token attends to those before it: what is not a
  // number ends here, before evictions are chosen by it.
  const auto last_row = logits.last(static_cast<std::size_t>(model_->spec().vocabulary_size));
  Summarise(last_row, &summary_);
  if (!summary_.usable()) FailLogits(last_row, cache_.tables().logical_length().value);
  if (PromptLeft() == 0) {
    if (running_->request.max_new_tokens > 0) {
      previous_logits_.clear();
      Sample(last_row, &result);
    } else {
      Finish(FinishReason::kLength, &result);
    }
  }
  broken_ = false;
  metrics_.max_resident_tokens = std::max(metrics_.max_resident_tokens, cache_.resident_tokens());
  if (result.evicted_tokens > 0) ++metrics_.evictions;
  return result;
}

void EngineImpl::Reset() {
  running_.reset();
  unread_.reset();
  previous_logits_.clear();
  cache_.Clear();
  broken_ = false;
}

EngineMetrics EngineImpl::metrics() const {
  EngineMetrics metrics = metrics_;
  metrics.logical_tokens = cache_.tables().logical_length().value;
  metrics.resident_tokens = cache_.resident_tokens();
  metrics.evicted_tokens = cache_.evicted_tokens();
  metrics.requantisation_error = cache_.requantisation_error();
  metrics.cache_bytes = cache_.pools().bytes_in_use();
  metrics.reserved_bytes = cache_.pools().bytes_reserved() + cache_.open_bytes();
  metrics.cache_bytes_per_token = cache_.pools().bytes_per_token();
  if (const Recall* recall = cache_.recall(); recall != nullptr) {
    metrics.recall_stored_tokens = recall->store().stored_tokens();
    metrics.recall_dropped_tokens = recall->store().dropped_tokens();
    metrics.recall_bytes = recall->store().bytes();
    metrics.recall_refused_growths = recall->store().refused_growths();
    metrics.recall_limited_by = recall->store().limited_by();
    metrics.recalled_blocks = recall->recalled_blocks();
    metrics.promoted_blocks = cache_.promoted_blocks();
    metrics.recall_seconds = recall->seconds();
  }
  metrics.rotation = settings_.rules.rotation;
  metrics.positions = cache_.tables().mode();
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
