// SPDX-License-Identifier: Apache-2.0
// Checkpoints of prompts' beginnings: frozen sequences that others go on from, instead of reading
// the same tokens again. What a sequence is hangs on its tokens and settings alone, so going on
// from a checkpoint is the same, bit for bit, as having read its tokens, evictions and all.
//
// They are found by a hash chain over blocks of tokens, and then compared token by token.
#pragma once

#include <cstdint>
#include <list>
#include <memory>
#include <span>
#include <unordered_map>
#include <vector>

#include "carousel/request.h"
#include "engine/sequence.h"
#include "engine/shared_cache.h"

namespace carousel {

// A prompt as the index knows it: chain[i] stands for its first i + 1 blocks of tokens, for what is
// pinned in all of it, and for the sequence's settings.
struct PrefixChain {
  const SharedCache* shared = nullptr;
  std::vector<std::uint64_t> chain;
};

class PrefixIndex {
 public:
  // 0: nothing is kept.
  explicit PrefixIndex(std::int64_t limit_bytes) : limit_bytes_(limit_bytes) {}

  bool keeps() const { return limit_bytes_ > 0; }
  static PrefixChain ChainOf(const SharedCache* shared, const Request& request);

  // The checkpoint of most of the first tokens of `prompt`, of more than `least` and not of all;
  // null: there is none. Valid until the next call. `chain` is the prompt's.
  const Sequence* Find(const PrefixChain& chain, std::span<const TokenId> prompt,
                       std::int64_t least);
  // Whether there is one of these first blocks; it is used then.
  bool Has(const PrefixChain& chain, std::int64_t blocks);
  // Keeps `sequence`, which has read the first `blocks` blocks of the chain's prompt; of what was
  // used least recently some may go, or it itself.
  void Add(const PrefixChain& chain, std::int64_t blocks, std::unique_ptr<Sequence> sequence);
  // False: there was none.
  bool DropOldest();

  std::int64_t size() const { return std::ssize(used_); }
  std::int64_t bytes() const { return bytes_; }
  // Those that are kept, the most recently used first. Valid until one goes.
  std::vector<const Sequence*> sequences() const;
  // CHECKs that all are found and counted; adds what they hold.
  void CheckIntegrity(Holdings* holdings) const;

 private:
  struct Checkpoint {
    std::uint64_t hash = 0;
    const SharedCache* shared = nullptr;
    std::unique_ptr<Sequence> sequence;
    std::int64_t bytes = 0;
  };
  using Place = std::list<Checkpoint>::iterator;
  Place At(const PrefixChain& chain, std::int64_t blocks);

  std::int64_t limit_bytes_;
  std::int64_t bytes_ = 0;
  std::list<Checkpoint> used_;  // the most recently used first
  std::unordered_map<std::uint64_t, Place> by_hash_;
};

}  // namespace carousel
