// SPDX-License-Identifier: Apache-2.0
#include "carousel/beam_search.h"

#include <fmt/format.h>

#include <algorithm>
#include <exception>
#include <map>
#include <set>
#include <string_view>
#include <utility>

#include "base/check.h"
#include "carousel/error.h"
#include "engine/best_answers.h"
#include "engine/next_words.h"

namespace carousel {
namespace {

[[noreturn]] void Refuse(std::string_view field, std::string_view problem) {
  throw Error(ErrorCode::kInvalidArgument, field, problem);
}

void RefuseWhatHasNoPlace(const Request& request) {
  ValidateForBeams(request.sampling);
  if (request.max_new_tokens < 1) {
    Refuse("max_new_tokens",
           fmt::format("{} leaves nothing to search for; use 1 or more", request.max_new_tokens));
  }
  const auto refuse = [](std::string_view field, bool is_there) {
    if (is_there) Refuse(field, "has no place in a beam search; leave it out");
  };
  refuse("forced_answer", !request.forced_answer.empty());
  refuse("stop_after", request.stop_after != nullptr);
  refuse("score_prompt", request.score_prompt);
  refuse("keep_logits", request.keep_logits);
}

// An answer in the making, and the sequence that has read it.
struct Beam {
  SequenceId sequence;
  BeamAnswer answer;
  std::vector<float> logits;  // [vocabulary_size], of what may follow
};

// A word that a beam may go on with.
struct Candidate {
  std::size_t beam = 0;  // of the group
  NextWord word;
  double sum = 0.0;  // of the answer with it
};

struct BeamGroup {
  bool done = false;
  std::vector<Beam> beams;  // best first
  std::vector<Candidate> next;
  BestAnswers best;
};

class BeamSearchImpl final : public BeamSearch {
 public:
  BeamSearchImpl(Engine* engine, Request request, const BeamParams& params)
      : engine_(*engine),
        params_(params),
        request_(std::move(request)),
        ends_(request_.stop_tokens.begin(), request_.stop_tokens.end()) {
    if (!request_.ignore_end_tokens) {
      const std::vector<TokenId>& end_tokens = engine_.model().spec().end_tokens;
      ends_.insert(end_tokens.begin(), end_tokens.end());
    }
    // Every beam may be forked before the others are closed; so that a fork is never lost.
    open_.reserve(static_cast<std::size_t>(2 * params_.num_beams + 1));
  }
  ~BeamSearchImpl() override { CloseAll(); }
  BeamSearchImpl(const BeamSearchImpl&) = delete;
  BeamSearchImpl& operator=(const BeamSearchImpl&) = delete;

  void Begin(SequenceId sequence);

  bool IsOf(SequenceId sequence) const override {
    return std::find(open_.begin(), open_.end(), sequence) != open_.end();
  }
  void Take(StepOutput output) override;
  bool HasWork() const override { return !open_.empty(); }
  void Cancel() override { End(FinishReason::kCancelled); }
  const std::vector<BeamAnswer>& answers() const override { return answers_; }
  SequenceMetrics metrics() const override {
    return open_.empty() ? metrics_ : engine_.metrics(open_.front());
  }

 private:
  std::int64_t beams_of_group() const { return params_.num_beams / params_.num_beam_groups; }
  void TakeLogits(SequenceId sequence, std::vector<float> logits);
  void Advance();
  std::vector<Candidate> CandidatesOf(const BeamGroup& group,
                                      const std::map<TokenId, double>& penalties);
  void Choose(BeamGroup* group, const std::map<TokenId, double>& penalties);
  BeamAnswer AnswerWith(const BeamGroup& group, const Candidate& candidate) const;
  void GoOn();
  void Ask(const Beam& beam);
  void End(FinishReason reason);
  void Finish();
  void Close(SequenceId sequence);
  void CloseAll();

  Engine& engine_;
  const BeamParams params_;
  const Request request_;
  std::set<TokenId> ends_;
  std::vector<BeamGroup> groups_;
  std::vector<SequenceId> open_;  // all that are the search's
  std::int64_t awaited_ = 0;      // of their outputs, before the beams can go on
  NextWords next_words_;
  std::vector<BeamAnswer> answers_;
  SequenceMetrics metrics_;
};

// All beams begin as one, which has said nothing.
void BeamSearchImpl::Begin(SequenceId sequence) {
  groups_.assign(static_cast<std::size_t>(params_.num_beam_groups),
                 {.best = BestAnswers(params_, request_.max_new_tokens)});
  for (BeamGroup& group : groups_) group.beams.assign(1, {.sequence = sequence});
  Request reading = request_;
  reading.max_new_tokens = 0;
  reading.keep_logits = true;
  engine_.Submit(sequence, std::move(reading));
  open_.push_back(sequence);
  awaited_ = 1;
}

void BeamSearchImpl::Take(StepOutput output) {
  CAROUSEL_CHECK(IsOf(output.sequence));
  try {
    if (output.failure) std::rethrow_exception(output.failure);
    const FinishReason reason = output.result.finish_reason;
    if (reason == FinishReason::kNone) return;  // there is more to read
    if (reason != FinishReason::kLength) return End(reason);
    TakeLogits(output.sequence, std::move(output.result.logits));
    if (--awaited_ == 0) Advance();
  } catch (...) {
    CloseAll();
    answers_.clear();
    throw;
  }
}

void BeamSearchImpl::TakeLogits(SequenceId sequence, std::vector<float> logits) {
  for (BeamGroup& group : groups_) {
    for (Beam& beam : group.beams) {
      if (beam.sequence == sequence) beam.logits = logits;
    }
  }
}

// --- One step of the search ----------------------------------------------------------------------

// Group by group, so that later ones keep away from what earlier ones have just chosen.
void BeamSearchImpl::Advance() {
  std::map<TokenId, double> penalties;
  for (BeamGroup& group : groups_) {
    if (group.done) continue;
    Choose(&group, penalties);
    if (params_.diversity_penalty == 0.0) continue;
    for (const Candidate& candidate : group.next)
      penalties[candidate.word.token] += params_.diversity_penalty;
  }
  const bool goes_on = std::any_of(groups_.begin(), groups_.end(),
                                   [](const BeamGroup& group) { return !group.done; });
  if (goes_on) {
    GoOn();
  } else {
    Finish();
  }
}

// Best first; of equal ones the earlier beam's, then the smaller token's.
std::vector<Candidate> BeamSearchImpl::CandidatesOf(const BeamGroup& group,
                                                    const std::map<TokenId, double>& penalties) {
  std::vector<Candidate> candidates;
  for (std::size_t beam = 0; beam < group.beams.size(); ++beam) {
    const BeamAnswer& answer = group.beams[beam].answer;
    std::set<TokenId> banned;
    if (params_.no_repeat_ngram_size > 0)
      AddRepeats(request_.prompt, answer.tokens, params_.no_repeat_ngram_size, &banned);
    for (const NextWord& word :
         next_words_.Best(group.beams[beam].logits, banned, penalties, ends_, beams_of_group())) {
      candidates.push_back(
          {.beam = beam, .word = word, .sum = answer.sum + word.logprob - word.penalty});
    }
  }
  std::stable_sort(
      candidates.begin(), candidates.end(),
      [](const Candidate& left, const Candidate& right) { return left.sum > right.sum; });
  return candidates;
}

BeamAnswer BeamSearchImpl::AnswerWith(const BeamGroup& group, const Candidate& candidate) const {
  BeamAnswer answer = group.beams[candidate.beam].answer;
  answer.tokens.push_back(candidate.word.token);
  answer.logprobs.push_back(static_cast<float>(candidate.word.logprob));
  answer.sum = candidate.sum;
  return answer;
}

// What the group's beams go on with; what ends is an answer where it is one of the best.
void BeamSearchImpl::Choose(BeamGroup* group, const std::map<TokenId, double>& penalties) {
  const std::vector<Candidate> candidates = CandidatesOf(*group, penalties);
  group->next.clear();
  for (std::size_t rank = 0; rank < candidates.size(); ++rank) {
    if (!ends_.contains(candidates[rank].word.token)) {
      group->next.push_back(candidates[rank]);
      if (std::ssize(group->next) == beams_of_group()) break;
    } else if (std::cmp_less(rank, beams_of_group())) {
      BeamAnswer answer = AnswerWith(*group, candidates[rank]);
      answer.finish_reason = FinishReason::kStop;
      group->best.Add(std::move(answer));
    }
  }
  const auto tokens = std::ssize(group->beams.front().answer.tokens) + 1;
  if (group->next.empty() || group->best.AreEnough(group->next.front().sum, tokens)) {
    group->done = true;
  } else if (tokens == request_.max_new_tokens) {
    for (const Candidate& candidate : group->next) {
      BeamAnswer answer = AnswerWith(*group, candidate);
      answer.finish_reason = FinishReason::kLength;
      group->best.Add(std::move(answer));
    }
    group->done = true;
  }
}

// Each sequence goes on with the best of its beam's words, and is forked for the others.
void BeamSearchImpl::GoOn() {
  std::map<SequenceId, std::int64_t> heirs;
  for (const SequenceId sequence : open_) heirs[sequence] = 0;
  for (BeamGroup& group : groups_) {
    if (group.done) group.next.clear();
    for (const Candidate& candidate : group.next) ++heirs[group.beams[candidate.beam].sequence];
  }
  for (const auto& [sequence, count] : heirs) {
    if (count == 0) Close(sequence);
  }
  std::set<SequenceId> taken;
  for (BeamGroup& group : groups_) {
    std::vector<Beam> beams;
    for (const Candidate& candidate : group.next) {
      const SequenceId parent = group.beams[candidate.beam].sequence;
      beams.push_back({.sequence = parent, .answer = AnswerWith(group, candidate)});
      if (taken.insert(parent).second) continue;
      beams.back().sequence = engine_.Fork(parent);
      open_.push_back(beams.back().sequence);
    }
    group.beams = std::move(beams);
  }
  // Not before all is forked: who has a request cannot be.
  for (const BeamGroup& group : groups_) {
    for (const Beam& beam : group.beams) Ask(beam);
  }
}

// Has the beam's last word read.
void BeamSearchImpl::Ask(const Beam& beam) {
  engine_.Submit(beam.sequence, {.prompt = {beam.answer.tokens.back()},
                                 .is_answer = true,
                                 .keep_logits = true,
                                 .priority = request_.priority,
                                 .deadline = request_.deadline});
  ++awaited_;
}

// --- The end -------------------------------------------------------------------------------------

void BeamSearchImpl::End(FinishReason reason) {
  for (BeamGroup& group : groups_) {
    if (group.done) continue;
    group.done = true;
    for (Beam& beam : group.beams) {
      if (beam.answer.tokens.empty()) continue;
      beam.answer.finish_reason = reason;
      group.best.Add(std::move(beam.answer));
    }
  }
  Finish();
}

void BeamSearchImpl::Finish() {
  if (open_.empty()) return;
  metrics_ = metrics();
  CloseAll();
  for (const BeamGroup& group : groups_)
    answers_.insert(answers_.end(), group.best.answers().begin(), group.best.answers().end());
  std::stable_sort(
      answers_.begin(), answers_.end(),
      [](const BeamAnswer& left, const BeamAnswer& right) { return left.score > right.score; });
  if (std::ssize(answers_) > params_.num_return_sequences)
    answers_.resize(static_cast<std::size_t>(params_.num_return_sequences));
}

void BeamSearchImpl::Close(SequenceId sequence) {
  engine_.Close(sequence);
  std::erase(open_, sequence);
}

void BeamSearchImpl::CloseAll() {
  for (const SequenceId sequence : open_) engine_.Close(sequence);
  open_.clear();
}

}  // namespace

std::unique_ptr<BeamSearch> BeamSearch::Start(Engine* engine, SequenceId sequence, Request request,
                                              const BeamParams& params) {
  Validate(params);
  RefuseWhatHasNoPlace(request);
  const SchedulerConfig& limits = engine->config().scheduler;
  if (params.num_beams > limits.max_running + limits.max_waiting) {
    Refuse("num_beams",
           fmt::format("{} are more than the {} requests that may run and wait; use at "
                       "most that, or raise max_running",
                       params.num_beams, limits.max_running + limits.max_waiting));
  }
  auto search = std::make_unique<BeamSearchImpl>(engine, std::move(request), params);
  search->Begin(sequence);
  return search;
}

std::vector<BeamAnswer> SearchBeams(Engine* engine, SequenceId sequence, Request request,
                                    const BeamParams& params) {
  const auto search = BeamSearch::Start(engine, sequence, std::move(request), params);
  while (search->HasWork()) {
    for (StepOutput& output : engine->Step()) {
      if (search->IsOf(output.sequence)) search->Take(std::move(output));
    }
  }
  return search->answers();
}

}  // namespace carousel
