// SPDX-License-Identifier: Apache-2.0
// The open sequences of an engine whose requests run, and those whose requests wait.
#pragma once

#include <cstdint>
#include <memory>
#include <optional>
#include <utility>
#include <vector>

#include "base/clock.h"
#include "cache/moved_blocks.h"
#include "carousel/types.h"
#include "engine/prefix_index.h"
#include "engine/sequence_run.h"

namespace carousel {

// An open sequence, and its request's place among those of others.
struct OpenSequence {
  OpenSequence(SequenceId name, std::unique_ptr<SequenceRun> of)
      : id(name), owned_run(std::move(of)) {}
  SequenceRun& run() { return *owned_run; }
  const SequenceRun& run() const { return *owned_run; }
  bool is_moved_out() const { return !moved_out.empty(); }

  SequenceId id;
  std::unique_ptr<SequenceRun> owned_run;
  RequestId request;             // the one at hand, or the last
  std::int64_t last_step = 0;    // that moved it, or in which it began to run
  Clock::time_point submitted;   // the request
  Clock::time_point last_token;  // of its answer, if it has begun
  bool has_begun = false;        // the answer
  bool has_run = false;          // the request: what it has waited is counted
  // The request's prompt, where it can begin at a checkpoint.
  std::optional<PrefixChain> chain;
  // Its blocks, while they are out of the pools.
  MovedBlocks moved_out;
  // The line's departures when it last found no room beside others, so that it does not try before
  // the next one; -1: it may try.
  std::int64_t lacked_room_at = -1;
};

// Whether `left` comes before `right` where there is not enough for both: by priority, then by age.
bool ComesBefore(const OpenSequence& left, const OpenSequence& right);

// Sequences stay their owner's.
class RequestLine {
 public:
  // In the order in which they began, and in the order in which they come before one another.
  const std::vector<OpenSequence*>& running() const { return running_; }
  const std::vector<OpenSequence*>& waiting() const { return waiting_; }
  bool empty() const { return running_.empty() && waiting_.empty(); }
  std::int64_t size() const { return std::ssize(running_) + std::ssize(waiting_); }
  // How often a sequence's blocks may have become free, ever: a request has ended, or a sequence
  // was closed or reset.
  std::int64_t departures() const { return departures_; }

  // Takes the memory that one more request needs here. Throws std::bad_alloc; nothing else does.
  void ReserveOne();
  // Its request waits, in its place, whether it ran before or is new; for a new one there is room.
  void Wait(OpenSequence* sequence) noexcept;
  // The first of those that wait runs.
  void RunFirst() noexcept;
  // Its request has ended, if it had one.
  void Leave(OpenSequence* sequence) noexcept;
  // CHECKs that each is in the line once and has a request, that those which wait are in their
  // order, and that none runs whose blocks are out of the pools.
  void CheckIntegrity() const;

 private:
  std::vector<OpenSequence*> running_;
  std::vector<OpenSequence*> waiting_;
  std::int64_t departures_ = 0;
};

}  // namespace carousel
