// SPDX-License-Identifier: Apache-2.0
#include "carousel/engine.h"

#include <fmt/format.h>

#include <algorithm>
#include <list>
#include <map>
#include <memory>
#include <mutex>
#include <optional>
#include <set>
#include <utility>

#include "base/aligned_buffer.h"
#include "base/check.h"
#include "base/clock.h"
#include "carousel/error.h"
#include "engine/cache_memory.h"
#include "engine/layer_attention.h"
#include "engine/prefix_index.h"
#include "engine/scheduler.h"
#include "engine/sequence_run.h"
#include "engine/settings.h"
#include "engine/shared_cache.h"

namespace carousel {
namespace {

// An open sequence, and its request's place among those of others.
struct OpenSequence {
  OpenSequence(SequenceId name, std::unique_ptr<SequenceRun> of)
      : id(name), owned_run(std::move(of)) {}
  SequenceRun& run() { return *owned_run; }
  const SequenceRun& run() const { return *owned_run; }
  bool is_moved_out() const { return moved_out.size() > 0; }

  SequenceId id;
  std::unique_ptr<SequenceRun> owned_run;
  RequestId request;           // the one at hand, or the last
  std::int64_t last_step = 0;  // that moved it, or in which it began to run
  // The request's prompt, where it can begin at a checkpoint.
  std::optional<PrefixChain> chain;
  // Its blocks, while they are out of the pools.
  AlignedBuffer<std::byte> moved_out;
  std::int64_t requests_ended = 0;  // by all, when it was moved out
};

// Whether `left` comes before `right` where there is not enough memory for both.
bool ComesBefore(const OpenSequence& left, const OpenSequence& right) {
  const std::int64_t ours = left.run().request().priority;
  const std::int64_t theirs = right.run().request().priority;
  return ours != theirs ? ours > theirs : left.request < right.request;
}

StepOutput FailureOf(const OpenSequence& open) {
  return {.sequence = open.id,
          .request = open.request,
          .result = {},
          .failure = std::current_exception()};
}

[[noreturn]] void FailMoveIn() {
  throw Error(ErrorCode::kOutOfMemory, "limit_bytes",
              "the pools have no room for the sequence, which was moved out of them; raise the "
              "limit, or close other sequences");
}

class EngineImpl final : public Engine {
 public:
  EngineImpl(std::unique_ptr<Model> model, const EngineConfig& config)
      : model_(std::move(model)),
        own_settings_(Settle(config)),
        memory_(model_->spec().layers, own_settings_.limit_bytes),
        attention_(&memory_),
        prefixes_(own_settings_.config.checkpoint_bytes) {
    SettleScheduler();
    SharedOf(own_settings_)->Reserve();
  }

  const Model& model() const override { return *model_; }
  const EngineConfig& config() const override { return own_settings_.config; }
  std::string rotation_reason() const override { return own_settings_.rotation_reason; }

  SequenceId Open() override { return OpenWith(own_settings_); }
  SequenceId Open(const EngineConfig& config) override;
  void Close(SequenceId sequence) override;
  void Reset(SequenceId sequence) override;

  CheckpointId Mark(SequenceId sequence) override;
  void Rewind(SequenceId sequence, CheckpointId checkpoint) override;
  SequenceId Fork(CheckpointId checkpoint) override;
  SequenceId Fork(SequenceId sequence) override;
  void Drop(CheckpointId checkpoint) override;

  RequestId Submit(SequenceId sequence, Request request) override;
  bool HasWork() const override { return !running_.empty() || !waiting_.empty(); }
  bool HasWork(SequenceId sequence) const override { return At(sequence).run().HasRequest(); }
  void Cancel(RequestId request) override;
  std::vector<StepOutput> Step() override;

  EngineMetrics metrics() const override;
  SequenceMetrics metrics(SequenceId sequence) const override;

  void GatherAttention(SequenceId sequence, bool gather) override {
    At(sequence).run().sequence().GatherAttention(gather);
  }
  std::int64_t cache_groups(SequenceId sequence) const override {
    return At(sequence).run().sequence().tables().groups();
  }
  std::vector<BlockAttention> GatheredAttention(SequenceId sequence,
                                                std::int64_t group) const override {
    return At(sequence).run().sequence().GatheredAttention(group);
  }

 private:
  EngineSettings Settle(const EngineConfig& config);
  void SettleScheduler();
  SharedCache* SharedOf(const EngineSettings& settings);
  SequenceId OpenWith(const EngineSettings& settings);
  SequenceId Adopt(std::unique_ptr<SequenceRun> run);
  std::unique_ptr<SequenceRun> ForkOf(const SequenceRun& run);
  const SequenceRun& AtCheckpoint(CheckpointId checkpoint) const;
  OpenSequence& At(SequenceId sequence);
  const OpenSequence& At(SequenceId sequence) const;

  void Leave(OpenSequence* sequence);
  void EndSome(std::vector<StepOutput>* outputs);
  void Admit();
  bool MoveIn(OpenSequence* sequence);
  void MoveOut(OpenSequence* sequence);
  void Wait(OpenSequence* sequence);
  bool FreeSomeFor(OpenSequence* sequence, std::vector<OpenSequence*>* moving);
  bool BeginsAtCheckpoint(const OpenSequence& sequence) const;
  void GoOnFromCheckpoint(OpenSequence* sequence);
  void KeepCheckpoint(OpenSequence* sequence);
  std::uint64_t NextChunkOf(const OpenSequence& sequence) const;
  std::vector<OpenSequence*> Choose();
  // Each drops those that fail from `moving`, with an output.
  void Plan(std::vector<OpenSequence*>* moving, std::vector<StepOutput>* outputs);
  std::span<const float> Forward(std::vector<OpenSequence*>* moving,
                                 std::vector<StepOutput>* outputs);
  void Read(std::span<const float> logits, std::vector<OpenSequence*>* moving,
            std::vector<StepOutput>* outputs);
  void Commit(const std::vector<OpenSequence*>& moving, std::vector<StepOutput>* outputs);

  std::unique_ptr<Model> model_;
  std::optional<RopeProbeResult> probe_;  // once somebody has had to know
  EngineSettings own_settings_;
  CacheMemory memory_;
  // One for each different configuration that a sequence was opened with.
  std::list<SharedCache> shared_;
  LayerAttention attention_;
  std::map<SequenceId, OpenSequence> sequences_;
  // With a request, in the order in which they go on: those that run by when they began, those that
  // wait by priority.
  std::vector<OpenSequence*> running_;
  std::vector<OpenSequence*> waiting_;
  std::int64_t next_sequence_ = 0;
  std::int64_t next_request_ = 0;
  std::int64_t step_ = 0;  // tried so far
  std::int64_t requests_ended_ = 0;
  StepRows rows_;
  PrefixIndex prefixes_;
  std::map<CheckpointId, std::unique_ptr<SequenceRun>> checkpoints_;
  std::int64_t next_checkpoint_ = 0;
  EngineMetrics metrics_;

  std::mutex cancelled_mutex_;
  std::vector<RequestId> cancelled_;  // since the last step
};

// --- Sequences -----------------------------------------------------------------------------------

// `config` with nothing left open. Probes the model when something may be evicted.
EngineSettings EngineImpl::Settle(const EngineConfig& config) {
  Validate(config);
  if (!config.eviction) return carousel::Settle(model_->spec(), config, RopeProbeResult{});
  if (!probe_) probe_ = ProbeFor(*model_, config);
  return carousel::Settle(model_->spec(), config, *probe_);
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
    if (shared.settings().config == settings.config) return &shared;
  }
  return &shared_.emplace_back(settings, &memory_);
}

SequenceId EngineImpl::Open(const EngineConfig& config) {
  EngineConfig own = config;
  own.cache.limit_bytes = memory_.pools().limit_bytes();
  own.cache.limit_tokens = 0;
  own.scheduler = own_settings_.config.scheduler;
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

// Takes a sequence whose request has ended off the lists.
void EngineImpl::Leave(OpenSequence* sequence) {
  std::erase(running_, sequence);
  std::erase(waiting_, sequence);
}

void EngineImpl::Close(SequenceId sequence) {
  Leave(&At(sequence));
  ++requests_ended_;  // or as good as that: there is room
  sequences_.erase(sequence);
}

void EngineImpl::Reset(SequenceId sequence) {
  OpenSequence& open = At(sequence);
  Leave(&open);
  ++requests_ended_;
  open.run().Reset();
  open.moved_out = {};
}

// --- Checkpoints ---------------------------------------------------------------------------------

// Of one that has no request. What the index keeps gives way.
std::unique_ptr<SequenceRun> EngineImpl::ForkOf(const SequenceRun& run) {
  CAROUSEL_CHECK(!run.HasRequest());
  for (;;) {
    try {
      return std::make_unique<SequenceRun>(run);
    } catch (const Error& error) {
      if (error.code() != ErrorCode::kOutOfMemory || !prefixes_.DropOldest()) throw;
    }
  }
}

const SequenceRun& EngineImpl::AtCheckpoint(CheckpointId checkpoint) const {
  const auto found = checkpoints_.find(checkpoint);
  CAROUSEL_CHECK(found != checkpoints_.end());
  return *found->second;
}

CheckpointId EngineImpl::Mark(SequenceId sequence) {
  OpenSequence& open = At(sequence);
  if (open.is_moved_out() && !MoveIn(&open)) FailMoveIn();
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
  if (open.is_moved_out() && !MoveIn(&open)) FailMoveIn();
  return Adopt(ForkOf(open.run()));
}

void EngineImpl::Drop(CheckpointId checkpoint) {
  CAROUSEL_CHECK_EQ(checkpoints_.erase(checkpoint), std::size_t{1});
}

// The prompt's beginning is what any other sequence with the same settings would make of it: the
// sequence was empty, and nobody asks for more than its answer.
bool EngineImpl::BeginsAtCheckpoint(const OpenSequence& open) const {
  const SequenceRun& run = open.run();
  if (!prefixes_.keeps() || run.request().score_prompt) return false;
  if (run.sequence().tables().logical_length().value > 0 || !run.IsBeginningOfPrompt())
    return false;
  const auto& eviction = run.shared()->settings().config.eviction;
  // At the end, the votes hang on how long the prompt is. And a chunk that is cut at a block's
  // boundary is not cut where it is the prompt's last.
  const EngineConfig& of = run.shared()->settings().config;
  return (!eviction || eviction->prompt_eviction == PromptEviction::kCapped) &&
         of.chunk_size % of.cache.block_size == 0;
}

void EngineImpl::GoOnFromCheckpoint(OpenSequence* open) {
  if (!open->chain) return;
  SequenceRun& run = open->run();
  const std::int64_t read = run.sequence().tables().logical_length().value;
  const Sequence* found = prefixes_.Find(*open->chain, run.request().prompt, read);
  if (found == nullptr) return;
  std::unique_ptr<Sequence> fork;
  try {
    fork = std::make_unique<Sequence>(*found);
  } catch (const std::exception&) {
    return;  // no room for another one: the tokens are read
  }
  const std::int64_t more = fork->tables().logical_length().value - read;
  run.GoOnFrom(std::move(fork));
  metrics_.reused_tokens += more;
  if (read == 0) ++metrics_.checkpoint_hits;
}

// After a step that has read a chunk of a prompt.
void EngineImpl::KeepCheckpoint(OpenSequence* open) {
  if (!open->chain) return;
  SequenceRun& run = open->run();
  const std::int64_t read = run.sequence().tables().logical_length().value;
  const std::int64_t block_size = run.shared()->block_size();
  if (!run.HasRequest() || !run.IsBeginningOfPrompt() || read % block_size != 0) {
    open->chain.reset();  // its own from here on
    return;
  }
  if (prefixes_.Has(*open->chain, read / block_size)) return;
  try {
    prefixes_.Add(*open->chain, read / block_size, std::make_unique<Sequence>(run.sequence()));
  } catch (const std::exception&) {
    // No room for it: who comes later reads the tokens again.
  }
}

// What stands for the prompt up to the end of its next chunk; 0: nobody else's is the same.
std::uint64_t EngineImpl::NextChunkOf(const OpenSequence& open) const {
  if (!open.chain) return 0;
  const std::int64_t end =
      open.run().sequence().tables().logical_length().value + open.run().NextTokens();
  const std::int64_t block_size = open.run().shared()->block_size();
  if (end % block_size != 0 || end == std::ssize(open.run().request().prompt)) return 0;
  return open.chain->chain[static_cast<std::size_t>(end / block_size - 1)];
}

// --- Requests ------------------------------------------------------------------------------------

RequestId EngineImpl::Submit(SequenceId sequence, Request request) {
  OpenSequence& open = At(sequence);
  const SchedulerConfig& limits = config().scheduler;
  const std::int64_t most = limits.max_running + limits.max_waiting;
  if (!open.run().HasRequest() && std::ssize(running_) + std::ssize(waiting_) >= most) {
    throw Error(ErrorCode::kBusy, "max_waiting",
                fmt::format("{} requests run and {} wait, and no more may; try again later",
                            running_.size(), waiting_.size()));
  }
  waiting_.reserve(waiting_.size() + 1);
  running_.reserve(waiting_.size() + running_.size() + 1);
  open.run().Submit(std::move(request));
  open.request = RequestId{next_request_++};
  open.chain.reset();
  Wait(&open);
  return open.request;
}

void EngineImpl::Cancel(RequestId request) {
  const std::lock_guard lock(cancelled_mutex_);
  cancelled_.push_back(request);
}

// Ends what was cancelled and what is late.
void EngineImpl::EndSome(std::vector<StepOutput>* outputs) {
  std::vector<RequestId> cancelled;
  {
    const std::lock_guard lock(cancelled_mutex_);
    cancelled.swap(cancelled_);
  }
  std::vector<OpenSequence*> all = running_;
  all.insert(all.end(), waiting_.begin(), waiting_.end());
  for (OpenSequence* open : all) {
    const auto& deadline = open->run().request().deadline;
    FinishReason reason = FinishReason::kNone;
    if (std::find(cancelled.begin(), cancelled.end(), open->request) != cancelled.end()) {
      reason = FinishReason::kCancelled;
    } else if (deadline && Clock::now() >= *deadline) {
      reason = FinishReason::kExpired;
    }
    if (reason == FinishReason::kNone) continue;
    outputs->push_back({.sequence = open->id,
                        .request = open->request,
                        .result = open->run().End(reason),
                        .failure = nullptr});
    ++requests_ended_;
    Leave(open);
  }
}

// --- A step --------------------------------------------------------------------------------------

// Puts a sequence's blocks back into the pools. False: there is no room.
bool EngineImpl::MoveIn(OpenSequence* open) {
  for (;;) {
    try {
      open->run().sequence().MoveIn(open->moved_out);
      open->moved_out = {};
      return true;
    } catch (const Error& error) {
      if (error.code() != ErrorCode::kOutOfMemory) throw;
      if (!prefixes_.DropOldest()) return false;
    }
  }
}

void EngineImpl::MoveOut(OpenSequence* open) {
  open->run().sequence().MoveOut(&open->moved_out);
  open->requests_ended = requests_ended_;
  ++metrics_.preemptions;
}

// Lets the first of those that wait run. One that was moved out waits until another request has
// ended, or it would only be moved out again.
void EngineImpl::Admit() {
  while (!waiting_.empty() && std::ssize(running_) < config().scheduler.max_running) {
    OpenSequence* first = waiting_.front();
    if (first->is_moved_out()) {
      if (!running_.empty() && first->requests_ended == requests_ended_) return;
      if (!MoveIn(first)) {
        if (!running_.empty()) return;
        // Nobody else will make room: those that have no request do.
        while (FreeSomeFor(first, nullptr)) {
          if (MoveIn(first)) break;
        }
        if (first->is_moved_out()) return;
      }
    } else if (BeginsAtCheckpoint(*first)) {
      first->chain = PrefixIndex::ChainOf(first->run().shared(), first->run().request());
    }
    first->last_step = step_;
    running_.push_back(first);
    waiting_.erase(waiting_.begin());
  }
}

std::vector<OpenSequence*> EngineImpl::Choose() {
  std::vector<Runnable> runnable;
  std::vector<OpenSequence*> who;
  std::set<std::uint64_t> chunks;
  std::vector<OpenSequence*> by_turn = running_;
  std::stable_sort(by_turn.begin(), by_turn.end(), [](const auto* left, const auto* right) {
    return left->last_step < right->last_step;
  });
  for (OpenSequence* open : by_turn) {
    GoOnFromCheckpoint(open);
    // What another one reads in this step is there for the next.
    const std::uint64_t chunk = NextChunkOf(*open);
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
  return moving;
}

// Makes some room in the pools for a step of `needy`, which comes before whoever has to leave:
// checkpoints first, then sequences without a request, the least recently used first, then the last
// of those that run. False: there is nobody left.
bool EngineImpl::FreeSomeFor(OpenSequence* needy, std::vector<OpenSequence*>* moving) {
  if (prefixes_.DropOldest()) return true;
  OpenSequence* idle = nullptr;
  for (auto& [id, open] : sequences_) {
    if (open.run().HasRequest() || open.run().is_broken() || open.is_moved_out() ||
        open.run().sequence().cache_bytes() == 0)
      continue;
    if (idle == nullptr || open.last_step < idle->last_step) idle = &open;
  }
  if (idle != nullptr) {
    MoveOut(idle);
    idle->requests_ended = -1;  // it may come back as soon as it has a request
    return true;
  }
  OpenSequence* last = nullptr;
  for (OpenSequence* open : running_) {
    if (open == needy || !ComesBefore(*needy, *open)) continue;
    if (open->run().sequence().cache_bytes() == 0) continue;
    if (last == nullptr || ComesBefore(*last, *open)) last = open;
  }
  if (last == nullptr) return false;
  MoveOut(last);
  Wait(last);
  if (moving != nullptr) std::erase(*moving, last);
  return true;
}

// Among those that wait, in its place.
void EngineImpl::Wait(OpenSequence* open) {
  std::erase(running_, open);
  const auto behind =
      std::find_if(waiting_.begin(), waiting_.end(),
                   [&](const OpenSequence* other) { return ComesBefore(*open, *other); });
  waiting_.insert(behind, open);
}

// In the order in which they come before one another, so that who must leave for one of them has
// not been planned yet. One that finds no room behind others waits for them.
void EngineImpl::Plan(std::vector<OpenSequence*>* moving, std::vector<StepOutput>* outputs) {
  std::vector<OpenSequence*> left = std::exchange(*moving, {});
  std::sort(left.begin(), left.end(),
            [](const auto* one, const auto* other) { return ComesBefore(*one, *other); });
  while (!left.empty()) {
    OpenSequence* open = left.front();
    left.erase(left.begin());
    for (;;) {
      try {
        open->run().Plan();
        moving->push_back(open);
      } catch (const Error& error) {
        const bool lacks_room = error.code() == ErrorCode::kOutOfMemory && !open->run().is_broken();
        if (lacks_room && FreeSomeFor(open, &left)) continue;
        if (lacks_room && std::ssize(running_) > 1) {
          MoveOut(open);
          Wait(open);
        } else {
          outputs->push_back(FailureOf(*open));
        }
      } catch (...) {
        outputs->push_back(FailureOf(*open));
      }
      break;
    }
  }
}

std::span<const float> EngineImpl::Forward(std::vector<OpenSequence*>* moving,
                                           std::vector<StepOutput>* outputs) {
  try {
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
                                                           .sequences = rows_.sequences},
                                                          attention_);
    metrics_.forward_seconds += SecondsSince(begin);
    return logits;
  } catch (...) {
    for (OpenSequence* open : *moving) {
      open->run().Abandon();
      outputs->push_back(FailureOf(*open));
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
      outputs->push_back(FailureOf(*open));
      return true;
    }
  });
}

void EngineImpl::Commit(const std::vector<OpenSequence*>& moving,
                        std::vector<StepOutput>* outputs) {
  for (OpenSequence* open : moving) {
    try {
      StepResult result = open->run().Commit();
      metrics_.rows += result.tokens_processed;
      open->last_step = step_;
      outputs->push_back({.sequence = open->id,
                          .request = open->request,
                          .result = std::move(result),
                          .failure = nullptr});
    } catch (...) {
      outputs->push_back(FailureOf(*open));
    }
    KeepCheckpoint(open);
    if (open->run().HasRequest()) continue;
    ++requests_ended_;
    Leave(open);
  }
}

std::vector<StepOutput> EngineImpl::Step() {
  CAROUSEL_CHECK(HasWork());
  std::vector<StepOutput> outputs;
  EndSome(&outputs);
  ++step_;
  Admit();
  std::vector<OpenSequence*> moving = Choose();
  outputs.reserve(outputs.size() + moving.size());
  Plan(&moving, &outputs);
  if (moving.empty()) return outputs;
  const std::span<const float> logits = Forward(&moving, &outputs);
  if (moving.empty()) return outputs;
  ++metrics_.steps;
  Read(logits, &moving, &outputs);
  Commit(moving, &outputs);
  return outputs;
}

// --- Questions -----------------------------------------------------------------------------------

EngineMetrics EngineImpl::metrics() const {
  EngineMetrics metrics = metrics_;
  metrics.sequences = std::ssize(sequences_);
  metrics.requests_running = std::ssize(running_);
  metrics.requests_waiting = std::ssize(waiting_);
  metrics.cache_bytes = memory_.pools().bytes_in_use();
  metrics.reserved_bytes = memory_.pools().bytes_reserved();
  metrics.limit_bytes = memory_.pools().limit_bytes();
  metrics.checkpoints = prefixes_.size() + std::ssize(checkpoints_);
  metrics.checkpoint_bytes = prefixes_.bytes();
  for (const auto& [id, run] : checkpoints_) metrics.checkpoint_bytes += run->sequence().bytes();
  for (const auto& [id, open] : sequences_)
    metrics.moved_out_bytes += static_cast<std::int64_t>(open.moved_out.size());
  metrics.attention_seconds = attention_.seconds();
  return metrics;
}

SequenceMetrics EngineImpl::metrics(SequenceId sequence) const {
  SequenceMetrics metrics = At(sequence).run().metrics();
  metrics.attention_seconds = attention_.seconds();
  metrics.forward_seconds = metrics_.forward_seconds;
  return metrics;
}

}  // namespace

std::unique_ptr<Engine> Engine::Create(std::unique_ptr<Model> model, const EngineConfig& config) {
  return std::make_unique<EngineImpl>(std::move(model), config);
}

}  // namespace carousel
