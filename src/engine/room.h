// SPDX-License-Identifier: Apache-2.0
// Who makes room where the pools are spent: checkpoints of prompts' beginnings, then sequences
// without a request, then those that wait, then the last that runs
// (docs/decisions/0022-many-sequences.md). Blocks that leave are copied, and come back as they
// were.
#pragma once

#include <cstdint>
#include <map>
#include <vector>

#include "engine/prefix_index.h"
#include "engine/request_line.h"

namespace carousel {

class Room {
 public:
  // All outlive it.
  Room(std::map<SequenceId, OpenSequence>* sequences, RequestLine* line, PrefixIndex* prefixes)
      : sequences_(*sequences), line_(*line), prefixes_(*prefixes) {}

  // Makes some room for a step of `needy`. Nobody leaves who comes before it. One that ran waits
  // from now on, and is taken off `moving`, which may be null. False: nobody is left to leave.
  bool FreeSomeFor(OpenSequence* needy, std::vector<OpenSequence*>* moving);
  // Takes a sequence's blocks out of the pools.
  void MoveOut(OpenSequence* sequence);
  // Puts them back; checkpoints leave for it. False: there is no room.
  bool MoveIn(OpenSequence* sequence);
  // The same of one that runs next, with nobody running: who has no request leaves for it as well.
  bool MoveInAlone(OpenSequence* sequence);

  std::int64_t preemptions() const { return preemptions_; }  // ever

 private:
  OpenSequence* LeastRecentlyUsed();
  OpenSequence* LastBehind(const std::vector<OpenSequence*>& line, const OpenSequence& needy);

  std::map<SequenceId, OpenSequence>& sequences_;
  RequestLine& line_;
  PrefixIndex& prefixes_;
  std::int64_t preemptions_ = 0;
};

}  // namespace carousel
