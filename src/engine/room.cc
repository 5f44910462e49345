// SPDX-License-Identifier: Apache-2.0
#include "engine/room.h"

#include "carousel/error.h"

namespace carousel {

bool Room::MoveIn(OpenSequence* open) {
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

bool Room::MoveInAlone(OpenSequence* open) {
  do {
    if (MoveIn(open)) return true;
  } while (FreeSomeFor(open, nullptr));
  return false;
}

void Room::MoveOut(OpenSequence* open) {
  open->run().sequence().MoveOut(&open->moved_out);
  open->requests_ended = line_.ended();
  ++preemptions_;
}

// Of those that hold blocks and have no request; null: there is none.
OpenSequence* Room::LeastRecentlyUsed() {
  OpenSequence* found = nullptr;
  for (auto& [id, open] : sequences_) {
    const SequenceRun& run = open.run();
    if (run.HasRequest() || run.is_broken() || open.is_moved_out()) continue;
    if (run.sequence().cache_bytes() == 0) continue;
    if (found == nullptr || open.last_step < found->last_step) found = &open;
  }
  return found;
}

// Of those in `line` that hold blocks; null: nobody behind `needy` does.
OpenSequence* Room::LastBehind(const std::vector<OpenSequence*>& line, const OpenSequence& needy) {
  OpenSequence* found = nullptr;
  for (OpenSequence* open : line) {
    if (open == &needy || open->is_moved_out() || !ComesBefore(needy, *open)) continue;
    if (open->run().sequence().cache_bytes() == 0) continue;
    if (found == nullptr || ComesBefore(*found, *open)) found = open;
  }
  return found;
}

bool Room::FreeSomeFor(OpenSequence* needy, std::vector<OpenSequence*>* moving) {
  if (prefixes_.DropOldest()) return true;
  OpenSequence* still = LeastRecentlyUsed();
  if (still == nullptr) still = LastBehind(line_.waiting(), *needy);
  if (still != nullptr) {
    MoveOut(still);
    still->requests_ended = -1;  // it may come back as soon as its turn comes
    return true;
  }
  OpenSequence* last = LastBehind(line_.running(), *needy);
  if (last == nullptr) return false;
  MoveOut(last);
  line_.Wait(last);
  if (moving != nullptr) std::erase(*moving, last);
  return true;
}

}  // namespace carousel
