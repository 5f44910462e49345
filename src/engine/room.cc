// SPDX-License-Identifier: Apache-2.0
#include "engine/room.h"

#include <new>

#include "carousel/error.h"

namespace carousel {
namespace {

// Whether `open` has blocks in the pools and would leave for `needy`.
bool LeavesFor(const OpenSequence& open, const OpenSequence& needy) {
  const SequenceRun& run = open.run();
  if (&open == &needy || open.is_moved_out() || run.sequence().cache_bytes() == 0) return false;
  if (!run.HasRequest()) return !run.is_broken();
  return needy.run().HasRequest() && ComesBefore(needy, open);
}

}  // namespace

// An upper bound: what several hold is counted for each of them.
bool Room::MayFit(const OpenSequence& open) const {
  if (pools_.limit_bytes() == 0) return true;
  std::int64_t room = pools_.limit_bytes() - pools_.bytes_in_use() + prefixes_.bytes();
  for (const auto& [id, other] : sequences_) {
    if (LeavesFor(other, open)) room += other.run().sequence().cache_bytes();
  }
  return open.run().sequence().cache_bytes() <= room;
}

bool Room::MoveIn(OpenSequence* open) {
  if (!MayFit(*open)) return false;
  for (;;) {
    try {
      open->run().sequence().MoveIn(open->moved_out);
      open->moved_out = {};
      return true;
    } catch (const Error& error) {
      if (error.code() != ErrorCode::kOutOfMemory) throw;
    }
    if (!FreeSomeFor(open, nullptr)) return false;
  }
}

// Nothing where it has no blocks.
void Room::MoveOut(OpenSequence* open) {
  if (open->run().sequence().cache_bytes() == 0) return;
  open->run().sequence().MoveOut(swap_directory_, &open->moved_out);
  ++preemptions_;
}

void Room::Preempt(OpenSequence* open) {
  MoveOut(open);
  open->lacked_room_at = line_.departures();
  line_.Wait(open);
}

// Of those that have no request; null: there is none.
OpenSequence* Room::LeastRecentlyUsedFor(const OpenSequence& needy) {
  OpenSequence* found = nullptr;
  for (auto& [id, open] : sequences_) {
    if (open.run().HasRequest() || !LeavesFor(open, needy)) continue;
    if (found == nullptr || open.last_step < found->last_step) found = &open;
  }
  return found;
}

// Of those in `line`; null: nobody behind `needy` has blocks.
OpenSequence* Room::LastBehind(const std::vector<OpenSequence*>& line, const OpenSequence& needy) {
  OpenSequence* found = nullptr;
  for (OpenSequence* open : line) {
    if (!LeavesFor(*open, needy)) continue;
    if (found == nullptr || ComesBefore(*found, *open)) found = open;
  }
  return found;
}

bool Room::FreeSomeFor(OpenSequence* needy, std::vector<OpenSequence*>* moving) noexcept {
  if (prefixes_.DropOldest()) return true;
  try {
    OpenSequence* still = LeastRecentlyUsedFor(*needy);
    if (still == nullptr) still = LastBehind(line_.waiting(), *needy);
    if (still != nullptr) {
      MoveOut(still);
      still->lacked_room_at = -1;  // it may come back as soon as its turn comes
      return true;
    }
    OpenSequence* last = LastBehind(line_.running(), *needy);
    if (last == nullptr) return false;
    Preempt(last);
    if (moving != nullptr) std::erase(*moving, last);
    return true;
  } catch (const std::bad_alloc&) {
    return false;
  }
}

}  // namespace carousel
