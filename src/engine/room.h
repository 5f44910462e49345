// SPDX-License-Identifier: Apache-2.0
// Who makes room where the pools are spent: checkpoints of prompts' beginnings, then sequences
// without a request, then those that wait, then the last that runs
// (docs/decisions/0022-many-sequences.md). Blocks that leave are copied, to disk or to memory, and
// come back as they were.
#pragma once

#include <cstdint>
#include <map>
#include <string>
#include <vector>

#include "cache/block_pools.h"
#include "engine/prefix_index.h"
#include "engine/request_line.h"

namespace carousel {

class Room {
 public:
  // All outlive it. Who leaves lies in `swap_directory`, empty: in memory.
  Room(std::map<SequenceId, OpenSequence>* sequences, RequestLine* line, PrefixIndex* prefixes,
       const PoolsByShape* pools, const std::string* swap_directory)
      : sequences_(*sequences),
        line_(*line),
        prefixes_(*prefixes),
        pools_(*pools),
        swap_directory_(*swap_directory) {}

  // Makes some room for `needy`. Nobody leaves who comes before it, and for one without a request
  // only others without one. One that ran waits from now on, and is taken off `moving`, which may
  // be null. False: nobody is left to leave, or there is no memory to leave to.
  bool FreeSomeFor(OpenSequence* needy, std::vector<OpenSequence*>* moving) noexcept;
  // Takes the blocks of one that runs out of the pools; it waits until another request has ended.
  // Throws std::bad_alloc; nothing has changed then.
  void Preempt(OpenSequence* sequence);
  // Puts a sequence's blocks back; others leave for it as in FreeSomeFor. False: there is no room,
  // and nobody has left where all together could not have made it. Throws std::bad_alloc, and
  // carousel::Error (kIo) where a disk does not give them back.
  bool MoveIn(OpenSequence* sequence);

  std::int64_t preemptions() const { return preemptions_; }  // ever

 private:
  void MoveOut(OpenSequence* sequence);
  bool MayFit(const OpenSequence& open) const;
  OpenSequence* LeastRecentlyUsedFor(const OpenSequence& needy);
  OpenSequence* LastBehind(const std::vector<OpenSequence*>& line, const OpenSequence& needy);

  std::map<SequenceId, OpenSequence>& sequences_;
  RequestLine& line_;
  PrefixIndex& prefixes_;
  const PoolsByShape& pools_;
  const std::string& swap_directory_;
  std::int64_t preemptions_ = 0;
};

}  // namespace carousel
