// SPDX-License-Identifier: Apache-2.0
// What an engine and its sequences say of themselves.
#pragma once

#include <array>
#include <cstddef>
#include <cstdint>
#include <string>

#include "carousel/enums.h"

namespace carousel {

// Of one sequence.
struct SequenceMetrics {
  std::int64_t logical_tokens = 0;       // of the sequence so far
  std::int64_t resident_tokens = 0;      // now, the maximum over groups
  std::int64_t max_resident_tokens = 0;  // ever
  // Ever, the maximum over groups; blocks that came back and left again count again.
  std::int64_t evicted_tokens = 0;
  // Now in the cache no more, likewise; what has only left a sliding window is no loss.
  std::int64_t forgotten_tokens = 0;
  std::int64_t evictions = 0;  // steps that evicted
  // Tokens that were read at positions beyond the model's trained window, ever: where nothing
  // rotates on a stream that is longer than it.
  std::int64_t tokens_past_window = 0;
  // Key rotation: what rounding rewritten keys does to them at each eviction, relative to their
  // size (root mean squares over all that were rewritten); 0 in f32 and with query rotation.
  double requantisation_error = 0.0;
  std::int64_t cache_bytes = 0;     // of its blocks
  std::int64_t reserved_bytes = 0;  // that the pools, for all sequences, and its open blocks hold
  std::int64_t cache_bytes_per_token = 0;
  // Recall: what the second tier holds and has dropped for want of room, in the KV head where that
  // is most.
  std::int64_t recall_stored_tokens = 0;
  std::int64_t recall_dropped_tokens = 0;
  std::int64_t recall_bytes = 0;  // of the second tier, sketches included
  // How often the second tier wanted to grow, below its limits, and could not, since the sequence
  // was opened: a full disk, a quota, no memory. It then drops its oldest blocks as it does at a
  // limit, and asks again now and then.
  std::int64_t recall_refused_growths = 0;
  std::string recall_limited_by;     // what the system said the last time; empty: nothing yet
  std::int64_t recalled_blocks = 0;  // brought back now, over all layers and KV heads
  std::int64_t promoted_blocks = 0;  // moved back into the cache, ever, over all groups
  double recall_seconds = 0.0;       // storing and choosing; part of attention_seconds but for
                                     // storing
  // Speculation: tokens that were guessed ahead, ever, and those of them that were right.
  std::int64_t drafted_tokens = 0;
  std::int64_t accepted_tokens = 0;
  double attention_seconds = 0.0;      // of the engine: inside our attention, ever
  double forward_seconds = 0.0;        // likewise the model's whole forward, attention included
  Rotation rotation = Rotation::kOff;  // in force: never kAuto
  PositionPolicy positions = PositionPolicy::kKeep;  // in force now: never kAuto
  // Of the last request's prompt: tokens that were not read, since a checkpoint had them.
  std::int64_t reused_tokens = 0;
  // There was no memory to keep what a step had found: the sequence must be reset.
  bool needs_reset = false;
};

// How many values were how large, ever: a value counts at the first of Scale's bounds that it is
// not above.
template <typename Scale>
struct HistogramOf {
  static constexpr auto kBounds = Scale::kBounds;

  void Add(double value) {
    std::size_t bound = 0;
    while (bound < kBounds.size() && value > kBounds[bound]) ++bound;
    ++counts[bound];
    sum += value;
  }
  // Takes back what had been added when `before` was copied.
  void Subtract(const HistogramOf& before) {
    for (std::size_t i = 0; i < counts.size(); ++i) counts[i] -= before.counts[i];
    sum -= before.sum;
  }
  std::int64_t count() const {
    std::int64_t all = 0;
    for (const std::int64_t each : counts) all += each;
    return all;
  }

  std::array<std::int64_t, kBounds.size() + 1> counts{};  // the last: above every bound
  double sum = 0.0;
};

struct SecondsScale {
  static constexpr std::array kBounds = {0.001, 0.0025, 0.005, 0.01, 0.025, 0.05, 0.1,  0.25,
                                         0.5,   1.0,    2.5,   5.0,  10.0,  25.0, 50.0, 100.0};
};
using Histogram = HistogramOf<SecondsScale>;

struct TokensScale {
  static constexpr std::array kBounds = {64.0,    128.0,    256.0,    512.0,    1024.0,
                                         2048.0,  4096.0,   8192.0,   16384.0,  32768.0,
                                         65536.0, 131072.0, 262144.0, 524288.0, 1048576.0};
};
using TokenHistogram = HistogramOf<TokensScale>;

// Of blocks when they are evicted, each cache group's by itself.
struct EvictedBlocks {
  TokenHistogram age;  // tokens of the stream since its last one was written
  // Tokens since the block was last written to, or last received more than its even share of the
  // attention that the policy counts. Empty where the policy counts none.
  TokenHistogram idle;
};

// Of an engine. "Ever" is since it was made.
struct EngineMetrics {
  std::int64_t sequences = 0;         // open now
  std::int64_t requests_running = 0;  // now
  std::int64_t requests_waiting = 0;  // now, for their turn or for memory
  std::int64_t steps = 0;             // forward passes, ever
  std::int64_t rows = 0;              // of them, ever: tokens that were read
  std::int64_t drafted_tokens = 0;    // of the rows, ever: guesses at what an answer says next
  std::int64_t accepted_tokens = 0;   // of those, ever: that were right
  std::int64_t cache_bytes = 0;       // of blocks in use
  std::int64_t reserved_bytes = 0;    // that the pools hold
  std::int64_t limit_bytes = 0;       // of the pools; 0: none
  std::int64_t checkpoints = 0;       // of prompts' beginnings and marks, now
  std::int64_t checkpoint_bytes = 0;  // that they may hold of the pools and beside them, at most
  std::int64_t reused_tokens = 0;     // of prompts, ever: not read, since a checkpoint had them
  std::int64_t checkpoint_hits = 0;   // requests that began at one, ever
  std::int64_t preemptions = 0;       // ever: sequences that left the pools for want of room
  std::int64_t moved_out_bytes = 0;   // of sequences that wait outside the pools, now
  std::int64_t swapped_bytes = 0;     // of them in files in EngineConfig::swap_directory
  // Added up over all steps of all sequences, ever: of each step what it evicted in the group that
  // evicted most in it, so for a sequence it may come to more than SequenceMetrics has.
  std::int64_t evicted_tokens = 0;
  EvictedBlocks evicted_blocks;      // by all sequences, ever
  std::int64_t recalled_blocks = 0;  // of open sequences, now, as SequenceMetrics has them
  std::int64_t promoted_blocks = 0;  // of open sequences, ever, likewise
  Histogram queue_time;              // of requests: from Submit until they run
  Histogram time_to_first_token;     // likewise: from Submit
  Histogram time_per_output_token;   // of each token after an answer's first: since the one before
  double attention_seconds = 0.0;    // inside our attention, ever
  double forward_seconds = 0.0;      // the model's whole forward, attention included, ever
};

}  // namespace carousel
