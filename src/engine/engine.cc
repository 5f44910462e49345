// SPDX-License-Identifier: Apache-2.0
#include "carousel/engine.h"

#include <fmt/format.h>

#include <algorithm>
#include <functional>
#include <list>
#include <map>
#include <memory>
#include <mutex>
#include <optional>
#include <set>
#include <utility>

#include "base/check.h"
#include "base/clock.h"
#include "cache/moved_blocks.h"
#include "carousel/error.h"
#include "engine/cache_memory.h"
#include "engine/engine_inside.h"
#include "engine/layer_attention.h"
#include "engine/prefix_index.h"
#include "engine/prompt_sharing.h"
#include "engine/request_line.h"
#include "engine/room.h"
#include "engine/row_independence.h"
#include "engine/scheduler.h"
#include "engine/sequence_run.h"
#include "engine/settings.h"
#include "engine/shared_cache.h"

namespace carousel {
namespace {

StepOutput OutputOf(const OpenSequence& open, StepResult result) {
  return {.sequence = open.id,
          .request = open.request,
          .result = std::move(result),
          .failure = nullptr};
}

Error NoRoomToComeBack() {
  return {ErrorCode::kOutOfMemory, "limit_bytes",
          "the pools have no room for the sequence, which was moved out of them; raise the "
          "limit, or close other sequences"};
}

void CountMovedOut(const MovedBlocks& blocks, EngineMetrics* metrics) {
  metrics->moved_out_bytes += blocks.bytes();
  if (blocks.is_in_file()) metrics->swapped_bytes += blocks.bytes();
}

class EngineImpl final : public Engine, public EngineInside {
 public:
  EngineImpl(std::unique_ptr<Model> model, const EngineConfig& config)
      : model_(std::move(model)),
        own_settings_(Settle(config)),
        memory_(model_->spec().layers, own_settings_.limit_bytes),
        attention_(&memory_),
        prefixes_(own_settings_.config.checkpoint_bytes) {
    SettleScheduler();
    if (IsPadded()) RequireIndependentRows(*model_);
    if (!config.swap_directory.empty()) CheckSwapDirectory(config.swap_directory);
    SharedOf(own_settings_)->Reserve();
  }

  const Model& model() const override { return *model_; }
  const EngineConfig& config() const override { return own_settings_.config; }
  std::string rotation_reason() const override { return own_settings_.rotation_reason; }

  SequenceId Open() override { return OpenWith(own_settings_); }
  SequenceId Open(const EngineConfig& config) override;
  void Close(SequenceId sequence) override;
  void Reset(SequenceId sequence) override;
  void OnForget(std::function<void(SequenceId)> tell) override { on_forget_ = std::move(tell); }

  CheckpointId Mark(SequenceId sequence) override;
  void Rewind(SequenceId sequence, CheckpointId checkpoint) override;
  SequenceId Fork(CheckpointId checkpoint) override;
  SequenceId Fork(SequenceId sequence) override;
  void Drop(CheckpointId checkpoint) override;

  RequestId Submit(SequenceId sequence, Request request) override;
  bool HasWork() const override { return !line_.empty() || !outputs_.empty(); }
  bool HasWork(SequenceId sequence) const override { return At(sequence).run().HasRequest(); }
  void Cancel(RequestId request) override;
  std::vector<StepOutput> Step() override;

  EngineMetrics metrics() const override;
  SequenceMetrics metrics(SequenceId sequence) const override;

  void GatherAttention(SequenceId sequence, bool gather) override;
  std::int64_t cache_groups(SequenceId sequence) const override {
    return At(sequence).run().sequence().tables().groups();
  }
  std::vector<BlockAttention> GatheredAttention(SequenceId sequence,
                                                std::int64_t group) const override {
    return At(sequence).run().sequence().GatheredAttention(group);
  }

  void CheckIntegrity() const override;
  const SequenceRun& RunOf(SequenceId sequence) const override { return At(sequence).run(); }
  const PrefixIndex& prefixes() const override { return prefixes_; }

 private:
  EngineSettings Settle(const EngineConfig& config);
  void SettleScheduler();
  SharedCache* SharedOf(const EngineSettings& settings);
  EngineConfig OfSequence(EngineConfig config) const;
  SequenceId OpenWith(const EngineSettings& settings);
  SequenceId Adopt(std::unique_ptr<SequenceRun> run);
  void Forget(SequenceId sequence);
  std::unique_ptr<SequenceRun> ForkOf(const SequenceRun& run);
  const SequenceRun& AtCheckpoint(CheckpointId checkpoint) const;
  OpenSequence& At(SequenceId sequence);
  const OpenSequence& At(SequenceId sequence) const;

  void ComeBack(OpenSequence* sequence);
  bool Prepare(OpenSequence* sequence);
  void AddFailure(OpenSequence* sequence, std::exception_ptr failure,
                  std::vector<StepOutput>* outputs);
  void EndSome(std::vector<StepOutput>* outputs);
  void Admit(std::vector<StepOutput>* outputs);
  void CountToken(OpenSequence* sequence);
  void GoOnFromCheckpoint(OpenSequence* sequence);
  std::vector<OpenSequence*> Choose();
  void Guess(const std::vector<OpenSequence*>& moving);
  void ReserveOutputs();
  void ChooseAtOnce(std::vector<StepOutput>* outputs);
  bool PlanOne(OpenSequence* sequence, std::vector<OpenSequence*>* moving);
  // Each drops those that fail from `moving`, with an output.
  void Plan(std::vector<OpenSequence*>* moving, std::vector<StepOutput>* outputs);
  std::span<const float> Forward(std::vector<OpenSequence*>* moving,
                                 std::vector<StepOutput>* outputs);
  void Read(std::span<const float> logits, std::vector<OpenSequence*>* moving,
            std::vector<StepOutput>* outputs);
  void Commit(const std::vector<OpenSequence*>& moving, std::vector<StepOutput>* outputs);

  // Whether passes of answers are padded, so that they round alike whoever is in them. A model that
  // is given one sequence alone at a time needs no padding for that.
  bool IsPadded() const {
    return config().scheduler.batch_invariant && !model_->spec().one_sequence_per_step;
  }
  std::size_t CountForPass(std::span<OpenSequence* const> moving) const;
  void RunPass(std::vector<OpenSequence*>* moving, std::vector<StepOutput>* outputs);

  std::unique_ptr<Model> model_;
  std::optional<RopeProbeResult> probe_;  // once somebody has had to know
  EngineSettings own_settings_;
  CacheMemory memory_;
  // One for each different configuration that a sequence was opened with.
  std::list<SharedCache> shared_;
  LayerAttention attention_;
  std::map<SequenceId, OpenSequence> sequences_;
  RequestLine line_;
  std::int64_t next_sequence_ = 0;
  std::int64_t next_request_ = 0;
  std::int64_t step_ = 0;  // tried so far
  StepRows rows_;
  PrefixIndex prefixes_;
  Room room_{&sequences_, &line_, &prefixes_, &memory_.pools(),
             &own_settings_.config.swap_directory};
  std::map<CheckpointId, std::unique_ptr<SequenceRun>> checkpoints_;
  std::int64_t next_checkpoint_ = 0;
  EngineMetrics metrics_;
  // Of the step at hand; after one that has thrown, what it had done before, for the next.
  std::vector<StepOutput> outputs_;
  std::function<void(SequenceId)> on_forget_;

  std::mutex cancelled_mutex_;
  std::vector<RequestId> cancelled_;  // since the last step
};

// --- Sequences -----------------------------------------------------------------------------------

// `config` with nothing left open. Probes the model when something may be evicted.
EngineSettings EngineImpl::Settle(const EngineConfig& config) {
  Validate(config);
  if (config.eviction && !probe_) probe_ = ProbeFor(*model_, config);
  return carousel::Settle(model_->spec(), config, probe_.value_or(RopeProbeResult{}));
}

void EngineImpl::SettleScheduler() {
  SchedulerConfig& scheduler = own_settings_.config.scheduler;
  const std::int64_t least = own_settings_.config.chunk_size + scheduler.max_running;
  if (scheduler.max_rows == 0) scheduler.max_rows = least;
  if (scheduler.max_rows < least) {
    throw Error(ErrorCode::kInvalidArgument, "max_rows",
                fmt::format("{} rows are too few for a chunk of {} tokens beside {} running "
                            "requests; use at least {}, or 0",
                            scheduler.max_rows, own_settings_.config.chunk_size,
                            scheduler.max_running, least));
  }
}

SharedCache* EngineImpl::SharedOf(const EngineSettings& settings) {
  for (SharedCache& shared : shared_) {
    if (OfSequence(shared.settings().config) == OfSequence(settings.config)) return &shared;
  }
  return &shared_.emplace_back(settings, &memory_);
}

// A sequence's configuration, with the engine's limits and scheduler in the place of its own.
EngineConfig EngineImpl::OfSequence(EngineConfig config) const {
  config.cache.limit_bytes = memory_.pools().limit_bytes();
  config.cache.limit_tokens = 0;
  config.checkpoint_bytes = own_settings_.config.checkpoint_bytes;
  config.swap_directory = own_settings_.config.swap_directory;
  config.scheduler = own_settings_.config.scheduler;
  return config;
}

SequenceId EngineImpl::Open(const EngineConfig& config) {
  const EngineConfig own = OfSequence(config);
  const EngineSettings settings = Settle(own);
  const std::int64_t chunk_size = settings.config.chunk_size;
  const std::int64_t chunk_most = own.scheduler.max_rows - own.scheduler.max_running;
  if (chunk_size > chunk_most) {
    throw Error(ErrorCode::kInvalidArgument, "chunk_size",
                fmt::format("{} is more than the {} rows that a step has beside {} running "
                            "requests; use at most that, or raise max_rows",
                            chunk_size, chunk_most, own.scheduler.max_running));
  }
  return OpenWith(settings);
}

SequenceId EngineImpl::OpenWith(const EngineSettings& settings) {
  SharedCache* shared = SharedOf(settings);
  return Adopt(std::make_unique<SequenceRun>(shared, &model_->spec()));
}

SequenceId EngineImpl::Adopt(std::unique_ptr<SequenceRun> run) {
  const SequenceId id{next_sequence_};
  sequences_.try_emplace(id, id, std::move(run)).first->second.last_step = step_;
  ++next_sequence_;
  return id;
}

OpenSequence& EngineImpl::At(SequenceId sequence) {
  const auto found = sequences_.find(sequence);
  CAROUSEL_CHECK(found != sequences_.end());
  return found->second;
}

const OpenSequence& EngineImpl::At(SequenceId sequence) const {
  const auto found = sequences_.find(sequence);
  CAROUSEL_CHECK(found != sequences_.end());
  return found->second;
}

// Its request ends without an output.
void EngineImpl::Forget(SequenceId sequence) {
  line_.Leave(&At(sequence));
  std::erase_if(outputs_, [&](const StepOutput& output) { return output.sequence == sequence; });
  if (on_forget_) on_forget_(sequence);
}

void EngineImpl::Close(SequenceId sequence) {
  Forget(sequence);
  sequences_.erase(sequence);
}

void EngineImpl::Reset(SequenceId sequence) {
  Forget(sequence);
  OpenSequence& open = At(sequence);
  open.run().Reset();
  open.moved_out = {};
}

// --- Checkpoints ---------------------------------------------------------------------------------

// Of one that has no request. What the index keeps gives way.
std::unique_ptr<SequenceRun> EngineImpl::ForkOf(const SequenceRun& run) {
  CAROUSEL_CHECK(!run.HasRequest());
  run.RefuseBroken();
  for (;;) {
    try {
      return std::make_unique<SequenceRun>(run);
    } catch (const Error& error) {
      if (error.code() != ErrorCode::kOutOfMemory || !prefixes_.DropOldest()) throw;
    }
  }
}

// Who is to be forked has its blocks in the pools.
void EngineImpl::ComeBack(OpenSequence* open) {
  if (open->is_moved_out() && !room_.MoveIn(open)) throw NoRoomToComeBack();
}

const SequenceRun& EngineImpl::AtCheckpoint(CheckpointId checkpoint) const {
  const auto found = checkpoints_.find(checkpoint);
  CAROUSEL_CHECK(found != checkpoints_.end());
  return *found->second;
}

CheckpointId EngineImpl::Mark(SequenceId sequence) {
  OpenSequence& open = At(sequence);
  ComeBack(&open);
  const CheckpointId id{next_checkpoint_};
  checkpoints_.try_emplace(id, ForkOf(open.run()));
  ++next_checkpoint_;
  return id;
}

void EngineImpl::Rewind(SequenceId sequence, CheckpointId checkpoint) {
  OpenSequence& open = At(sequence);
  CAROUSEL_CHECK(!open.run().HasRequest());
  open.owned_run = ForkOf(AtCheckpoint(checkpoint));
  open.moved_out = {};
}

SequenceId EngineImpl::Fork(CheckpointId checkpoint) {
  return Adopt(ForkOf(AtCheckpoint(checkpoint)));
}

SequenceId EngineImpl::Fork(SequenceId sequence) {
  OpenSequence& open = At(sequence);
  ComeBack(&open);
  return Adopt(ForkOf(open.run()));
}

void EngineImpl::Drop(CheckpointId checkpoint) {
  CAROUSEL_CHECK_EQ(checkpoints_.erase(checkpoint), std::size_t{1});
}

// --- Requests ------------------------------------------------------------------------------------

RequestId EngineImpl::Submit(SequenceId sequence, Request request) {
  OpenSequence& open = At(sequence);
  const SchedulerConfig& limits = config().scheduler;
  if (!open.run().HasRequest() && line_.size() >= limits.max_running + limits.max_waiting) {
    throw Error(ErrorCode::kBusy, "max_waiting",
                fmt::format("{} requests run and {} wait, and no more may; try again later",
                            line_.running().size(), line_.waiting().size()));
  }
  line_.ReserveOne();
  open.run().Submit(std::move(request));
  // Nothing below throws.
  open.request = RequestId{next_request_++};
  open.chain.reset();
  open.submitted = Clock::now();
  open.has_begun = open.has_run = false;
  open.lacked_room_at = -1;
  line_.Wait(&open);
  return open.request;
}

void EngineImpl::Cancel(RequestId request) {
  const std::lock_guard lock(cancelled_mutex_);
  cancelled_.push_back(request);
}

// Ends what was cancelled and what is late.
void EngineImpl::EndSome(std::vector<StepOutput>* outputs) {
  std::vector<OpenSequence*> all = line_.running();
  all.insert(all.end(), line_.waiting().begin(), line_.waiting().end());
  // From here on nothing throws, or what was cancelled would be forgotten.
  std::vector<RequestId> cancelled;
  {
    const std::lock_guard lock(cancelled_mutex_);
    cancelled.swap(cancelled_);
  }
  for (OpenSequence* open : all) {
    const auto& deadline = open->run().request().deadline;
    FinishReason reason = FinishReason::kNone;
    if (std::find(cancelled.begin(), cancelled.end(), open->request) != cancelled.end()) {
      reason = FinishReason::kCancelled;
    } else if (deadline && Clock::now() >= *deadline) {
      reason = FinishReason::kExpired;
    }
    if (reason == FinishReason::kNone) continue;
    outputs->push_back(OutputOf(*open, open->run().End(reason)));
    line_.Leave(open);
  }
}

// --- A step --------------------------------------------------------------------------------------

// For this sequence the step has not been. The others have their turn first.
void EngineImpl::AddFailure(OpenSequence* open, std::exception_ptr failure,
                            std::vector<StepOutput>* outputs) {
  open->last_step = step_;
  outputs->push_back({.sequence = open->id,
                      .request = open->request,
                      .result = {},
                      .failure = std::move(failure)});
}

// Makes the first of those that wait ready to run. False: there is no room for it.
bool EngineImpl::Prepare(OpenSequence* open) {
  if (open->is_moved_out()) return room_.MoveIn(open);
  open->chain = ChainOfRequest(prefixes_, open->run());
  return true;
}

// Lets the first of those that wait run. One that has found no room waits until another request has
// ended, or it would only be moved out again.
void EngineImpl::Admit(std::vector<StepOutput>* outputs) {
  while (!line_.waiting().empty() && std::ssize(line_.running()) < config().scheduler.max_running) {
    OpenSequence* first = line_.waiting().front();
    if (!line_.running().empty() && first->lacked_room_at == line_.departures()) return;
    std::exception_ptr failure;
    try {
      if (!Prepare(first)) failure = std::make_exception_ptr(NoRoomToComeBack());
    } catch (...) {
      failure = std::current_exception();
    }
    if (failure != nullptr) {
      first->lacked_room_at = line_.departures();
      if (line_.running().empty()) AddFailure(first, std::move(failure), outputs);
      return;
    }
    first->last_step = step_;
    if (!std::exchange(first->has_run, true))
      metrics_.queue_time.Add(SecondsSince(first->submitted));
    line_.RunFirst();
  }
}

void EngineImpl::CountToken(OpenSequence* open) {
  const auto now = Clock::now();
  if (std::exchange(open->has_begun, true)) {
    metrics_.time_per_output_token.Add(SecondsBetween(open->last_token, now));
  } else {
    metrics_.time_to_first_token.Add(SecondsBetween(open->submitted, now));
  }
  open->last_token = now;
}

// The first tokens that no pass is needed for.
void EngineImpl::ChooseAtOnce(std::vector<StepOutput>* outputs) {
  for (std::size_t i = 0; i < line_.running().size();) {
    OpenSequence* open = line_.running()[i];
    if (open->run().ChoosesAtOnce()) {
      try {
        outputs->push_back(OutputOf(*open, open->run().ChooseAtOnce()));
        CountToken(open);
        open->last_step = step_;
      } catch (...) {
        AddFailure(open, std::current_exception(), outputs);
      }
    }
    if (open->run().HasRequest()) {
      ++i;
    } else {
      line_.Leave(open);
    }
  }
}

void EngineImpl::GoOnFromCheckpoint(OpenSequence* open) {
  if (!open->chain) return;
  const bool is_first = open->run().sequence().tables().logical_length().value == 0;
  const std::int64_t tokens = carousel::GoOnFromCheckpoint(*open->chain, &prefixes_, &open->run());
  metrics_.reused_tokens += tokens;
  if (is_first && tokens > 0) ++metrics_.checkpoint_hits;
}

// Who is part of the step's pass. Who says a token without one has the step by that.
std::vector<OpenSequence*> EngineImpl::Choose() {
  std::vector<Runnable> runnable;
  std::vector<OpenSequence*> who;
  std::set<std::uint64_t> chunks;
  std::vector<OpenSequence*> by_turn = line_.running();
  std::stable_sort(by_turn.begin(), by_turn.end(), [](const auto* left, const auto* right) {
    return left->last_step < right->last_step;
  });
  for (OpenSequence* open : by_turn) {
    if (open->run().ChoosesAtOnce()) continue;
    GoOnFromCheckpoint(open);
    // What another one reads in this step is there for the next.
    const std::uint64_t chunk = open->chain ? NextChunkOf(*open->chain, open->run()) : 0;
    if (chunk != 0 && !chunks.insert(chunk).second) continue;
    who.push_back(open);
    runnable.push_back({.rows = open->run().NextTokens(),
                        .is_prompt = open->run().ReadsPrompt(),
                        .last_step = open->last_step});
  }
  if (runnable.empty()) return {};
  const auto chosen = model_->spec().one_sequence_per_step
                          ? ChooseOne(runnable)
                          : ChooseRunning(runnable, config().scheduler.max_rows);
  std::vector<OpenSequence*> moving;
  for (const std::size_t i : chosen) moving.push_back(who[i]);
  Guess(moving);
  return moving;
}

// Answers guess ahead in rows that are left, together as far as one of them may alone: a row more
// costs a pass the more, the more rows it has.
void EngineImpl::Guess(const std::vector<OpenSequence*>& moving) {
  std::int64_t rows = config().scheduler.max_rows;
  std::int64_t most = 0;
  std::int64_t answers = 0;
  for (OpenSequence* open : moving) {
    rows -= open->run().NextTokens();
    if (open->run().ReadsPrompt()) continue;
    ++answers;
    most = std::max(most, open->run().request().sampling.max_draft_tokens);
  }
  if (answers == 0) return;
  std::int64_t left = std::max<std::int64_t>(0, std::min(rows, most));
  std::int64_t share = std::max<std::int64_t>(1, left / answers);
  // So that how many guess beside it changes nothing of how an answer is rounded.
  if (IsPadded()) share = std::min(share, kInvariantRows - 1);
  for (OpenSequence* open : moving) left -= open->run().Draft(std::min(left, share));
}

// One that finds no room behind others waits for them: false.
bool EngineImpl::PlanOne(OpenSequence* open, std::vector<OpenSequence*>* moving) {
  for (;;) {
    try {
      open->run().Plan();
      return true;
    } catch (const Error& error) {
      if (error.code() != ErrorCode::kOutOfMemory || open->run().is_broken()) throw;
      if (room_.FreeSomeFor(open, moving)) continue;
      if (std::ssize(line_.running()) == 1) throw;
      room_.Preempt(open);
      return false;
    }
  }
}

// In the order in which they come before one another, so that who must leave for one of them has
// not been planned yet. Throws nothing: others would be left with a plan.
void EngineImpl::Plan(std::vector<OpenSequence*>* moving, std::vector<StepOutput>* outputs) {
  std::sort(moving->begin(), moving->end(),
            [](const auto* one, const auto* other) { return ComesBefore(*one, *other); });
  for (std::size_t planned = 0; planned < moving->size();) {
    OpenSequence* open = (*moving)[planned];
    bool moves = false;
    try {
      moves = PlanOne(open, moving);
    } catch (...) {
      AddFailure(open, std::current_exception(), outputs);
    }
    if (moves) {
      ++planned;
    } else {
      moving->erase(moving->begin() + static_cast<std::ptrdiff_t>(planned));
    }
  }
}

std::span<const float> EngineImpl::Forward(std::vector<OpenSequence*>* moving,
                                           std::vector<StepOutput>* outputs) {
  try {
    const bool is_prompt = moving->front()->run().ReadsPrompt();
    const std::int64_t least_rows = IsPadded() && !is_prompt ? kInvariantRows : 0;
    rows_.Clear();
    std::vector<Sequence*> sequences;
    for (OpenSequence* open : *moving) {
      open->run().AddRows(&rows_);
      sequences.push_back(&open->run().sequence());
    }
    attention_.Begin(sequences);
    const auto begin = Clock::now();
    const std::span<const float> logits = model_->Forward({.token_ids = rows_.token_ids,
                                                           .position_ids = rows_.position_ids,
                                                           .logit_rows = rows_.logit_rows,
                                                           .sequences = rows_.sequences,
                                                           .least_rows = least_rows},
                                                          attention_);
    metrics_.forward_seconds += SecondsSince(begin);
    return logits;
  } catch (...) {
    for (OpenSequence* open : *moving) {
      open->run().Abandon();
      AddFailure(open, std::current_exception(), outputs);
    }
    moving->clear();
    return {};
  }
}

void EngineImpl::Read(std::span<const float> logits, std::vector<OpenSequence*>* moving,
                      std::vector<StepOutput>* outputs) {
  std::size_t range = 0;
  std::size_t first = 0;  // of rows_.logit_rows
  std::erase_if(*moving, [&](OpenSequence* open) {
    const RowRange& rows = rows_.sequences[range++];
    std::size_t end = first;
    while (end < rows_.logit_rows.size() && rows_.logit_rows[end] < rows.first_row + rows.rows)
      ++end;
    const auto vocabulary = static_cast<std::size_t>(model_->spec().vocabulary_size);
    const auto own = logits.subspan(first * vocabulary, (end - first) * vocabulary);
    first = end;
    try {
      open->run().Read(own);
      return false;
    } catch (...) {
      open->run().Abandon();
      AddFailure(open, std::current_exception(), outputs);
      return true;
    }
  });
}

void EngineImpl::Commit(const std::vector<OpenSequence*>& moving,
                        std::vector<StepOutput>* outputs) {
  for (OpenSequence* open : moving) {
    try {
      for (StepResult& result : open->run().Commit()) {
        metrics_.rows += result.tokens_processed + result.drafted_tokens - result.accepted_tokens;
        metrics_.drafted_tokens += result.drafted_tokens;
        metrics_.accepted_tokens += result.accepted_tokens;
        metrics_.evicted_tokens += result.evicted_tokens;
        if (result.sampled) CountToken(open);
        outputs->push_back(OutputOf(*open, std::move(result)));
      }
      open->last_step = step_;
    } catch (...) {
      AddFailure(open, std::current_exception(), outputs);
    }
    if (open->chain && !KeepCheckpoint(*open->chain, &prefixes_, open->run())) open->chain.reset();
    if (open->run().HasRequest()) continue;
    line_.Leave(open);
  }
}

// In their order. std::stable_partition would ask for memory.
void MoveAnswersToFront(std::vector<OpenSequence*>* moving) {
  std::size_t answers = 0;
  for (std::size_t i = 0; i < moving->size(); ++i) {
    if ((*moving)[i]->run().ReadsPrompt()) continue;
    std::rotate(moving->begin() + static_cast<std::ptrdiff_t>(answers++),
                moving->begin() + static_cast<std::ptrdiff_t>(i),
                moving->begin() + static_cast<std::ptrdiff_t>(i) + 1);
  }
}

// How many of the first of `moving`, answers before prompts, share the next pass: all, or where it
// is padded, the answers that fill it, or one prompt.
std::size_t EngineImpl::CountForPass(std::span<OpenSequence* const> moving) const {
  if (!IsPadded()) return moving.size();
  std::size_t count = 0;
  std::int64_t rows = 0;
  for (const OpenSequence* open : moving) {
    rows += open->run().sequence().plan().tokens;
    if (count > 0 && (open->run().ReadsPrompt() || rows > kInvariantRows)) break;
    ++count;
    if (open->run().ReadsPrompt()) break;
  }
  return count;
}

// The pass of those that are planned, and what comes of it.
void EngineImpl::RunPass(std::vector<OpenSequence*>* moving, std::vector<StepOutput>* outputs) {
  const std::span<const float> logits = Forward(moving, outputs);
  if (moving->empty()) return;
  ++metrics_.steps;
  Read(logits, moving, outputs);
  Commit(*moving, outputs);
}

// So that a step lacks no memory for what it has done: one for each request at most, and for tokens
// that were guessed, of which all together have as many as one of them may.
void EngineImpl::ReserveOutputs() {
  std::int64_t drafted = 0;
  for (const auto* line : {&line_.running(), &line_.waiting()}) {
    for (const OpenSequence* open : *line)
      drafted = std::max(drafted, open->run().request().sampling.max_draft_tokens);
  }
  outputs_.reserve(outputs_.size() + static_cast<std::size_t>(line_.size() + drafted));
}

std::vector<StepOutput> EngineImpl::Step() {
  CAROUSEL_CHECK(HasWork());
  ReserveOutputs();
  EndSome(&outputs_);
  ++step_;
  Admit(&outputs_);
  std::vector<OpenSequence*> moving = Choose();
  std::vector<OpenSequence*> pass;
  pass.reserve(moving.size());
  // From here on nothing throws.
  ChooseAtOnce(&outputs_);
  Plan(&moving, &outputs_);
  if (IsPadded()) MoveAnswersToFront(&moving);
  for (std::span<OpenSequence* const> left = moving; !left.empty();) {
    const std::size_t count = CountForPass(left);
    pass.assign(left.begin(), left.begin() + static_cast<std::ptrdiff_t>(count));
    left = left.subspan(count);
    RunPass(&pass, &outputs_);
  }
  return std::exchange(outputs_, {});
}

void EngineImpl::GatherAttention(SequenceId sequence, bool gather) {
  OpenSequence& open = At(sequence);
  // What a checkpoint has read, nobody has watched.
  if (gather) open.chain.reset();
  open.run().sequence().GatherAttention(gather);
}

// --- Questions -----------------------------------------------------------------------------------

EngineMetrics EngineImpl::metrics() const {
  EngineMetrics metrics = metrics_;
  metrics.sequences = std::ssize(sequences_);
  metrics.requests_running = std::ssize(line_.running());
  metrics.requests_waiting = std::ssize(line_.waiting());
  metrics.cache_bytes = memory_.pools().bytes_in_use();
  metrics.reserved_bytes = memory_.pools().bytes_reserved();
  metrics.preemptions = room_.preemptions();
  metrics.limit_bytes = memory_.pools().limit_bytes();
  metrics.checkpoints = prefixes_.size() + std::ssize(checkpoints_);
  metrics.checkpoint_bytes = prefixes_.bytes();
  for (const auto& [id, run] : checkpoints_) metrics.checkpoint_bytes += run->sequence().bytes();
  for (const auto& [id, open] : sequences_) {
    CountMovedOut(open.moved_out, &metrics);
    const Sequence& sequence = open.run().sequence();
    metrics.promoted_blocks += sequence.promoted_blocks();
    if (sequence.recall() != nullptr)
      metrics.recalled_blocks += sequence.recall()->recalled_blocks();
  }
  metrics.evicted_blocks = memory_.evicted_blocks();
  metrics.attention_seconds = attention_.seconds();
  return metrics;
}

SequenceMetrics EngineImpl::metrics(SequenceId sequence) const {
  SequenceMetrics metrics = At(sequence).run().metrics();
  metrics.attention_seconds = attention_.seconds();
  metrics.forward_seconds = metrics_.forward_seconds;
  return metrics;
}

void EngineImpl::CheckIntegrity() const {
  Holdings holdings;
  std::int64_t requests = 0;
  for (const auto& [id, open] : sequences_) {
    const Sequence& sequence = open.run().sequence();
    sequence.CheckIntegrity(open.is_moved_out(), &holdings);
    if (open.is_moved_out()) CAROUSEL_CHECK_EQ(open.moved_out.bytes(), sequence.cache_bytes());
    if (open.run().HasRequest()) ++requests;
  }
  for (const auto& [id, run] : checkpoints_) {
    CAROUSEL_CHECK(!run->HasRequest());
    run->sequence().CheckIntegrity(/*is_moved_out=*/false, &holdings);
  }
  prefixes_.CheckIntegrity(&holdings);
  line_.CheckIntegrity();
  CAROUSEL_CHECK_EQ(line_.size(), requests);
  CAROUSEL_CHECK_LE(std::ssize(line_.running()), config().scheduler.max_running);
  memory_.CheckIntegrity(holdings);
}

}  // namespace

const EngineInside& InsideOf(const Engine& engine) {
  const auto* inside = dynamic_cast<const EngineInside*>(&engine);
  CAROUSEL_CHECK(inside != nullptr);
  return *inside;
}

std::unique_ptr<Engine> Engine::Create(std::unique_ptr<Model> model, const EngineConfig& config) {
  return std::make_unique<EngineImpl>(std::move(model), config);
}

}  // namespace carousel
