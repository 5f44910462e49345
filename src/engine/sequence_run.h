// SPDX-License-Identifier: Apache-2.0
// A sequence and the request that it reads and answers, step by step.
//
// A step is Plan, AddRows, a forward pass over the rows of all sequences, Read (what the logits
// say), then Commit, or Abandon after whatever failed.
#pragma once

#include <cstdint>
#include <memory>
#include <optional>
#include <span>
#include <vector>

#include "carousel/metrics.h"
#include "carousel/model.h"
#include "carousel/request.h"
#include "engine/draft_length.h"
#include "engine/logits.h"
#include "engine/sampler.h"
#include "engine/sequence.h"
#include "engine/shared_cache.h"

namespace carousel {

// A forward pass's input, of one sequence after another.
struct StepRows {
  std::vector<TokenId> token_ids;
  std::vector<std::int64_t> position_ids;
  std::vector<std::int64_t> logit_rows;
  std::vector<RowRange> sequences;

  void Clear();
};

// Throws the carousel::Error of a sequence whose commit failed half-way: it must be reset.
[[noreturn]] void FailHalfDone();

class SequenceRun {
 public:
  // Both outlive it.
  SequenceRun(SharedCache* shared, const ModelSpec* spec);
  // A fork of one without a step at hand, without a request and not broken. Throws as Sequence
  // does.
  SequenceRun(const SequenceRun& from);
  SequenceRun& operator=(const SequenceRun&) = delete;

  const SharedCache* shared() const { return shared_; }
  Sequence& sequence() { return *sequence_; }
  const Sequence& sequence() const { return *sequence_; }

  // --- The request.

  // As Engine::Submit.
  void Submit(Request request);
  bool HasRequest() const { return running_.has_value(); }
  // The one at hand.
  const Request& request() const { return running_->request; }
  // A commit failed half-way: the sequence must be reset.
  bool is_broken() const { return broken_; }
  // Throws carousel::Error then.
  void RefuseBroken() const;
  bool ReadsPrompt() const { return PromptLeft() > 0; }
  // Whether the sequence is nothing but the first tokens of the request's prompt, so that any other
  // that has read them stands as this one does.
  bool IsBeginningOfPrompt() const;
  // Becomes `sequence`, of the same settings, which has read more of the prompt's first tokens, and
  // not all. IsBeginningOfPrompt holds.
  void GoOnFrom(std::unique_ptr<Sequence> sequence);
  // Whether the request's first token comes from what the last one has read, without a pass.
  bool ChoosesAtOnce() const {
    return running_->request.prompt.empty() && running_->generated == 0;
  }
  StepResult ChooseAtOnce();
  // Ends the request where it is.
  StepResult End(FinishReason reason);
  // Forgets everything.
  void Reset();

  // --- A step. There is a request.

  // Guesses what follows in the answer at hand, at most `most` tokens, for the next Plan; returns
  // how many rows more that takes. None of a request without speculation.
  std::int64_t Draft(std::int64_t most);
  // How many tokens the next step reads, but for guesses: one while decoding; a chunk of the prompt
  // that ends on a block's boundary while more follows, so that evictions between chunks find full
  // blocks.
  std::int64_t NextTokens() const;
  // Throws carousel::Error where an earlier commit failed half-way, and as Sequence::Plan.
  void Plan();
  void AddRows(StepRows* rows) const;
  // `logits`, of the rows that it asked for: scores the prompt, chooses a token, and more as long
  // as guesses are right. Throws carousel::Error where they give no distribution.
  void Read(std::span<const float> logits);
  // What the step has found becomes the sequence's and the request's state: a result for a chunk
  // of the prompt, or one for each token of the answer. Throws std::bad_alloc alone: the request
  // has then ended, and the sequence must be reset.
  std::vector<StepResult> Commit();
  void Abandon() noexcept;

  // All but the seconds, which are the engine's.
  SequenceMetrics metrics() const;

 private:
  // The request and what it has left to do.
  struct RunningRequest {
    Request request;
    std::size_t read = 0;             // prompt tokens already given to the model
    bool begins_with_unread = false;  // the prompt's first token is the last answer's last
    std::int64_t generated = 0;
    std::optional<Sampler> sampler;           // when something is to be generated
    std::shared_ptr<DraftProposer> proposer;  // null: nothing is guessed
    std::optional<DraftLength> draft_length;  // likewise
    std::vector<TokenId> draft;               // for the next step
  };
  // What a step has found and the commit makes lasting.
  struct StepOutcome {
    std::vector<TokenId> tokens;      // that are read; in an answer the first alone is no guess
    std::int64_t said = 0;            // so many of the first of them are the model's own words
    std::vector<float> last_logits;   // of the last token, while prompts are scored
    std::vector<float> next_logits;   // likewise, of a prompt that is only read
    std::vector<StepResult> results;  // of the chunk, or of each token that was chosen
    std::optional<Sampler> sampler;   // where guesses were tested: it has accepted all but the last
  };

  const EngineConfig& config() const { return shared_->settings().config; }
  std::int64_t PromptLeft() const {
    return static_cast<std::int64_t>(running_->request.prompt.size() - running_->read);
  }
  bool Scores() const { return running_->request.score_prompt && ReadsPrompt(); }
  void PinSpans(const Request& request);
  Sampler MakeSampler(const Request& request) const;
  bool EndsAnswer(TokenId token) const;
  void Score(std::span<const float> logits);
  void StartGuessing();
  void Choose(std::span<const float> row, Sampler* sampler, StepResult* result) const;
  void ChooseWhileRight(std::span<const float> logits);
  bool KeepUntilStop();
  std::vector<StepResult> Apply();
  void NoteDraft(std::vector<StepResult>* results);
  void SeeAnswer(std::span<const StepResult> results);
  void Accept(StepResult* result, bool stops);
  void Finish(FinishReason reason, StepResult* result);

  SharedCache* shared_;
  const ModelSpec* spec_;
  std::unique_ptr<Sequence> sequence_;
  std::int64_t reused_tokens_ = 0;  // of the last request's prompt
  std::optional<RunningRequest> running_;
  std::optional<TokenId> unread_;       // sampled, not yet given to the model
  std::vector<float> previous_logits_;  // of the last token read, while prompts are scored
  // Of the last token read, where the last request only read its prompt: what an answer to it can
  // begin with.
  std::vector<float> next_logits_;
  LogitsSummary summary_;  // of the last step's last row
  StepOutcome outcome_;    // of the step at hand
  bool broken_ = false;    // a commit failed half-way
  SequenceMetrics metrics_;
};

}  // namespace carousel
