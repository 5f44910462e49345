// SPDX-License-Identifier: Apache-2.0
#include "engine/sequence_run.h"
#include "engine/prompt_lookup.h"

#include <fmt/format.h>

#include <algorithm>
#include <cmath>
#include <limits>
#include <utility>

#include "base/check.h"
#include "base/parallel.h"
#include "carousel/error.h"

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

}  // namespace

void StepRows::Clear() {
  token_ids.clear();
  position_ids.clear();
  logit_rows.clear();
  sequences.clear();
}

SequenceRun::SequenceRun(SharedCache* shared, const ModelSpec* spec)
    : shared_(shared), spec_(spec), sequence_(std::make_unique<Sequence>(shared)) {}

SequenceRun::SequenceRun(const SequenceRun& from)
    : shared_(from.shared_),
      spec_(from.spec_),
      sequence_(std::make_unique<Sequence>(*from.sequence_)),
      unread_(from.unread_),
      previous_logits_(from.previous_logits_),
      next_logits_(from.next_logits_),
      metrics_(from.metrics_) {
  CAROUSEL_CHECK(!from.running_.has_value());
}

void FailHalfDone() {
  throw Error(ErrorCode::kOutOfMemory, "sequence",
              "there was no memory to finish the last step; reset the sequence first");
}

void SequenceRun::RefuseBroken() const {
  if (broken_) FailHalfDone();
}

void SequenceRun::Submit(Request request) {
  if (HasRequest()) {
    throw Error(ErrorCode::kInvalidArgument, "prompt",
                "another request is running; step until it is done, or cancel it and step once");
  }
  RefuseBroken();
  Validate(request.sampling);
  const bool goes_on = !next_logits_.empty() && request.max_new_tokens > 0;
  if (request.prompt.empty() && !goes_on) {
    throw Error(ErrorCode::kInvalidArgument, "prompt", "there are no tokens; give at least one");
  }
  const std::int64_t vocabulary = spec_->vocabulary_size;
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
  reused_tokens_ = 0;
  if (request.max_new_tokens > 0) running_->sampler = MakeSampler(request);
  if (unread_) {
    request.prompt.insert(request.prompt.begin(), *unread_);
    running_->begins_with_unread = true;
    previous_logits_.clear();
    unread_.reset();
  }
  running_->request = std::move(request);
  StartGuessing();
}

// Guessing is a help: where it fails, the answer goes on without.
void SequenceRun::StartGuessing() {
  const Request& request = running_->request;
  const SamplingParams& params = request.sampling;
  if (params.max_draft_tokens == 0 || request.max_new_tokens < 2) return;
  if (!request.forced_answer.empty()) return;
  running_->draft_length.emplace(params.max_draft_tokens);
  try {
    running_->proposer = request.proposer;
    if (!running_->proposer)
      running_->proposer = std::make_shared<PromptLookup>(params.draft_ngram);
    running_->proposer->See(sequence_->history());
    running_->proposer->See(request.prompt);
  } catch (const std::exception&) {
    running_->proposer.reset();
  }
}

std::int64_t SequenceRun::Draft(std::int64_t most) {
  RunningRequest& running = *running_;
  running.draft.clear();
  if (!running.proposer || ReadsPrompt()) return 0;
  most = std::min(
      {most, running.draft_length->Next(), running.request.max_new_tokens - running.generated - 1});
  if (most <= 0) return 0;
  try {
    running.proposer->Propose(most, &running.draft);
  } catch (const std::exception&) {
    running.draft.clear();
    running.proposer.reset();
  }
  // An embedder's own proposer can be wrong in both.
  const auto wrong = std::find_if(running.draft.begin(), running.draft.end(), [&](TokenId token) {
    return token < 0 || token >= spec_->vocabulary_size;
  });
  running.draft.erase(wrong, running.draft.end());
  if (std::ssize(running.draft) > most) running.draft.resize(static_cast<std::size_t>(most));
  return std::ssize(running.draft);
}

StepResult SequenceRun::ChooseAtOnce() {
  outcome_ = {};
  outcome_.results.resize(1);
  Summarise(next_logits_, &summary_);
  Choose(next_logits_, &*running_->sampler, &outcome_.results.front());
  const bool stops = KeepUntilStop();
  StepResult result = std::move(outcome_.results.front());
  next_logits_.clear();
  SeeAnswer({&result, 1});
  Accept(&result, stops);
  return result;
}

// The request's sampler, which has seen of the history and the prompt what counts as repetition.
Sampler SequenceRun::MakeSampler(const Request& request) const {
  Sampler sampler(request.sampling);
  for (const TokenId token : spec_->end_tokens) sampler.Exempt(token);
  for (const TokenId token : request.stop_tokens) sampler.Exempt(token);
  const std::int64_t window = request.sampling.penalty_window;
  if (request.penalise_prompt) {
    for (const TokenId token : sequence_->LastTokens(window)) sampler.See(token);
  } else {
    // What earlier answers ended with (a full stop) is on the way to the end of this one. Where a
    // token is unread, the last answer was cut short.
    std::vector<TokenId> endings = sequence_->LastOfAnswers();
    if (unread_ && !endings.empty()) endings.pop_back();
    for (const TokenId token : endings) sampler.Exempt(token);
    for (const TokenId token : sequence_->LastSaid(window)) sampler.See(token);
  }
  if (unread_) sampler.See(*unread_);
  if (request.penalise_prompt) {
    for (const TokenId token : request.prompt) sampler.See(token);
  }
  return sampler;
}

void SequenceRun::PinSpans(const Request& request) {
  const std::int64_t first = sequence_->tables().logical_length().value + (unread_ ? 1 : 0);
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
  sequence_->eviction().Pin(spans);
}

std::int64_t SequenceRun::NextTokens() const {
  const std::int64_t left = PromptLeft();
  if (left == 0) return 1;
  std::int64_t tokens = std::min(left, config().chunk_size);
  const std::int64_t block_size = config().cache.block_size;
  const std::int64_t beyond = (sequence_->tables().logical_length().value + tokens) % block_size;
  if (tokens < left && beyond < tokens) tokens -= beyond;
  return sequence_->tables().LimitStep(tokens);
}

void SequenceRun::Plan() {
  RefuseBroken();
  const std::int64_t tokens = NextTokens();
  const bool is_prompt = ReadsPrompt();
  outcome_ = {};
  if (is_prompt) {
    const auto first =
        running_->request.prompt.begin() + static_cast<std::ptrdiff_t>(running_->read);
    outcome_.tokens.assign(first, first + tokens);
    outcome_.said = running_->read == 0 && running_->begins_with_unread ? 1 : 0;
  } else {
    outcome_.tokens = std::exchange(running_->draft, {});
    outcome_.tokens.insert(outcome_.tokens.begin(), *unread_);
  }
  const StepPlan& plan = sequence_->Plan({.tokens = std::ssize(outcome_.tokens),
                                          .is_prompt = is_prompt,
                                          .prompt_left = is_prompt ? PromptLeft() - tokens : 0});
  outcome_.tokens.resize(static_cast<std::size_t>(plan.tokens));
  StepResult& first = outcome_.results.emplace_back();
  first.tokens_processed = is_prompt ? tokens : 1;
  first.evicted_tokens = plan.evicted_tokens;
  if (!is_prompt) first.drafted_tokens = plan.tokens - 1;
}

void SequenceRun::AddRows(StepRows* rows) const {
  const std::int64_t first = std::ssize(rows->token_ids);
  const std::int64_t tokens = std::ssize(outcome_.tokens);
  rows->token_ids.insert(rows->token_ids.end(), outcome_.tokens.begin(), outcome_.tokens.end());
  const auto& positions = sequence_->plan().position_ids;
  rows->position_ids.insert(rows->position_ids.end(), positions.begin(), positions.end());
  for (std::int64_t i = Scores() || !ReadsPrompt() ? 0 : tokens - 1; i < tokens; ++i)
    rows->logit_rows.push_back(first + i);
  rows->sequences.push_back({.first_row = first, .rows = tokens});
}

// Row i of the logits predicts token i + 1; the last row waits for what comes next.
void SequenceRun::Score(std::span<const float> logits) {
  const std::vector<TokenId>& tokens = outcome_.tokens;
  const auto vocabulary = static_cast<std::size_t>(spec_->vocabulary_size);
  const std::int64_t tokens_before =
      sequence_->tables().logical_length().value - std::ssize(tokens);
  const auto row_before = [&](std::size_t i) {
    return i == 0 ? std::span<const float>(previous_logits_)
                  : logits.subspan((i - 1) * vocabulary, vocabulary);
  };
  const std::size_t first = previous_logits_.empty() ? 1 : 0;
  std::vector<double>& nats = outcome_.results.front().negative_log_likelihood;
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
  outcome_.last_logits.assign(last.begin(), last.end());
}

// `row` is what summary_ is of.
void SequenceRun::Choose(std::span<const float> row, Sampler* sampler, StepResult* result) const {
  const RunningRequest& running = *running_;
  const auto& forced = running.request.forced_answer;
  if (running.request.keep_logits) result->logits.assign(row.begin(), row.end());
  result->sampled = sampler->Choose(
      row, summary_,
      forced.empty() ? std::nullopt
                     : std::optional(forced[static_cast<std::size_t>(running.generated)]));
}

// Draws the answer's next token, and as long as the guess behind it was the same, one more. The
// draws are those of as many steps; so the sampler that makes them is a copy where the step may yet
// fail at a later one.
void SequenceRun::ChooseWhileRight(std::span<const float> logits) {
  const std::vector<TokenId>& tokens = outcome_.tokens;
  const auto vocabulary = static_cast<std::size_t>(spec_->vocabulary_size);
  const bool tests_guesses = tokens.size() > 1;
  if (tests_guesses) outcome_.sampler = running_->sampler;
  Sampler* sampler = tests_guesses ? &*outcome_.sampler : &*running_->sampler;
  for (std::size_t i = 0; i < tokens.size(); ++i) {
    const auto row = logits.subspan(i * vocabulary, vocabulary);
    Summarise(row, &summary_);
    if (!summary_.usable()) {
      if (i > 0) return;  // the next step fails by it
      FailLogits(row, sequence_->plan().first_query_logical.value + 1);
    }
    if (i > 0) {
      sampler->Accept(tokens[i]);
      outcome_.results.emplace_back().tokens_processed = 1;
    }
    Choose(row, sampler, &outcome_.results.back());
    const TokenId token = outcome_.results.back().sampled->token;
    if (i + 1 == tokens.size() || token != tokens[i + 1] || EndsAnswer(token)) return;
  }
}

// Drops what follows the token after which the request wants to stop; whether there is one.
bool SequenceRun::KeepUntilStop() {
  const auto& stop_after = running_->request.stop_after;
  if (!stop_after) return false;
  std::vector<StepResult>& results = outcome_.results;
  for (std::size_t i = 0; i < results.size(); ++i) {
    if (!results[i].sampled || EndsAnswer(results[i].sampled->token)) return false;
    if (!stop_after(results[i].sampled->token)) continue;
    results.resize(i + 1);
    return true;
  }
  return false;
}

// Shows the answer's new tokens to who guesses.
void SequenceRun::SeeAnswer(std::span<const StepResult> results) {
  if (!running_->proposer) return;
  try {
    for (const StepResult& result : results) running_->proposer->See({&result.sampled->token, 1});
  } catch (const std::exception&) {
    running_->proposer.reset();
  }
}

// The last chosen token becomes part of the answer; `stops`: it is the last.
void SequenceRun::Accept(StepResult* result, bool stops) {
  RunningRequest& running = *running_;
  const TokenId token = result->sampled->token;
  running.sampler->Accept(token);
  ++running.generated;
  const bool may_end =
      running.request.forced_answer.empty() || running.generated == running.request.max_new_tokens;
  unread_.reset();
  if (may_end && EndsAnswer(token)) return Finish(FinishReason::kStop, result);
  unread_ = token;
  if (stops) return Finish(FinishReason::kStop, result);
  if (running.generated >= running.request.max_new_tokens) Finish(FinishReason::kLength, result);
}

bool SequenceRun::EndsAnswer(TokenId token) const {
  const Request& request = running_->request;
  const auto is_in = [token](const std::vector<TokenId>& ends) {
    return std::find(ends.begin(), ends.end(), token) != ends.end();
  };
  return is_in(request.stop_tokens) || (!request.ignore_end_tokens && is_in(spec_->end_tokens));
}

void SequenceRun::Finish(FinishReason reason, StepResult* result) {
  result->finish_reason = reason;
  // Of a cancelled prompt the rest never came.
  sequence_->eviction().TrimPins(sequence_->tables().logical_length().value);
  running_.reset();
}

bool SequenceRun::IsBeginningOfPrompt() const {
  return running_ && !running_->begins_with_unread && ReadsPrompt() &&
         sequence_->tables().logical_length().value == static_cast<std::int64_t>(running_->read);
}

void SequenceRun::GoOnFrom(std::unique_ptr<Sequence> sequence) {
  CAROUSEL_CHECK(IsBeginningOfPrompt());
  const std::int64_t length = sequence->tables().logical_length().value;
  CAROUSEL_CHECK_LT(length, std::ssize(running_->request.prompt));
  sequence_ = std::move(sequence);
  reused_tokens_ += length - static_cast<std::int64_t>(running_->read);
  running_->read = static_cast<std::size_t>(length);
}

StepResult SequenceRun::End(FinishReason reason) {
  StepResult result;
  // Of a prompt of which nothing was read, the last answer's token waits on.
  if (running_->read == 0 && running_->begins_with_unread)
    unread_ = running_->request.prompt.front();
  Finish(reason, &result);
  return result;
}

void SequenceRun::Read(std::span<const float> logits) {
  if (Scores()) Score(logits);
  if (!ReadsPrompt()) return ChooseWhileRight(logits);
  // The last row tells of the whole step, as every token attends to those before it: what is not a
  // number ends here, before evictions are chosen by it.
  const auto last_row = logits.last(static_cast<std::size_t>(spec_->vocabulary_size));
  Summarise(last_row, &summary_);
  if (!summary_.usable()) FailLogits(last_row, sequence_->tables().logical_length().value);
  if (PromptLeft() > std::ssize(outcome_.tokens)) return;
  if (running_->request.max_new_tokens > 0) {
    Choose(last_row, &*running_->sampler, &outcome_.results.front());
  } else {
    outcome_.next_logits.assign(last_row.begin(), last_row.end());
  }
}

std::vector<StepResult> SequenceRun::Apply() {
  const bool stops = KeepUntilStop();
  std::vector<StepResult> results = std::move(outcome_.results);
  const bool answers = !ReadsPrompt();
  const std::int64_t kept = answers ? std::ssize(results) : std::ssize(outcome_.tokens);
  sequence_->Commit(std::span(outcome_.tokens).first(static_cast<std::size_t>(kept)),
                    answers ? kept : outcome_.said);
  if (answers) {
    NoteDraft(&results);
  } else {
    running_->read += outcome_.tokens.size();
  }
  // The logits of a token that has passed since score nothing.
  previous_logits_ = std::move(outcome_.last_logits);
  next_logits_ = std::move(outcome_.next_logits);
  metrics_.max_resident_tokens =
      std::max(metrics_.max_resident_tokens, sequence_->resident_tokens());
  if (results.front().evicted_tokens > 0) ++metrics_.evictions;
  if (const std::int64_t window = spec_->trained_window; window > 0) {
    const std::int64_t last = sequence_->plan().position_ids[static_cast<std::size_t>(kept - 1)];
    metrics_.tokens_past_window += std::clamp<std::int64_t>(last + 1 - window, 0, kept);
  }
  if (results.back().sampled) {
    previous_logits_.clear();
    SeeAnswer(results);
    Accept(&results.back(), stops);
  } else if (PromptLeft() == 0) {
    Finish(FinishReason::kLength, &results.back());
  }
  return results;
}

// Counts what came of the draft, and of its right part all but what Accept counts.
void SequenceRun::NoteDraft(std::vector<StepResult>* results) {
  const std::int64_t drafted = results->front().drafted_tokens;
  const std::int64_t accepted = std::ssize(*results) - 1;
  results->front().accepted_tokens = accepted;
  metrics_.drafted_tokens += drafted;
  metrics_.accepted_tokens += accepted;
  running_->generated += accepted;
  if (outcome_.sampler) running_->sampler = std::move(outcome_.sampler);
  if (!running_->draft_length) return;
  if (drafted > 0) {
    running_->draft_length->NoteDraft(drafted, accepted);
  } else {
    running_->draft_length->NoteNone();
  }
}

std::vector<StepResult> SequenceRun::Commit() {
  try {
    return Apply();
  } catch (...) {
    broken_ = true;
    running_.reset();
    throw;
  }
}

void SequenceRun::Abandon() noexcept { sequence_->Abandon(); }

void SequenceRun::Reset() {
  running_.reset();
  unread_.reset();
  previous_logits_.clear();
  next_logits_.clear();
  sequence_->Clear();
  broken_ = false;
}

SequenceMetrics SequenceRun::metrics() const {
  SequenceMetrics metrics = metrics_;
  metrics.logical_tokens = sequence_->tables().logical_length().value;
  metrics.resident_tokens = sequence_->resident_tokens();
  metrics.evicted_tokens = sequence_->evicted_tokens();
  metrics.forgotten_tokens = sequence_->forgotten_tokens();
  metrics.requantisation_error = sequence_->requantisation_error();
  metrics.cache_bytes = sequence_->cache_bytes();
  metrics.reserved_bytes = shared_->pools().bytes_reserved() + sequence_->open_bytes();
  metrics.cache_bytes_per_token = shared_->pools().bytes_per_token();
  if (const RecallState* recall = sequence_->recall(); recall != nullptr) {
    metrics.recall_stored_tokens = recall->store().stored_tokens();
    metrics.recall_dropped_tokens = recall->store().dropped_tokens();
    metrics.recall_bytes = recall->store().bytes();
    metrics.recall_refused_growths = recall->store().refused_growths();
    metrics.recall_limited_by = recall->store().limited_by();
    metrics.recalled_blocks = recall->recalled_blocks();
    metrics.promoted_blocks = sequence_->promoted_blocks();
    metrics.recall_seconds = recall->seconds();
  }
  metrics.rotation = shared_->settings().rules.rotation;
  metrics.positions = sequence_->tables().mode();
  metrics.needs_reset = broken_;
  metrics.reused_tokens = reused_tokens_;
  return metrics;
}

}  // namespace carousel
