// SPDX-License-Identifier: Apache-2.0
// What is brought back of what was evicted, and where that is kept meanwhile.
#pragma once

#include <cstdint>
#include <optional>
#include <string>

#include "carousel/enums.h"

namespace carousel {

// Forgotten is not lost: evicted blocks go to a second tier, and each KV head of each layer brings
// back for a step those that the step's queries would give most attention to. Recalled blocks stand
// beside what is resident, in stream order, by query rotation; their keys are never rewritten.
// Layers with a sliding window recall nothing: what leaves the window cannot be seen.
struct RecallConfig {
  std::int64_t blocks = 0;  // that a KV head may bring back at once; 0: off
  // Where the model or the rotation leave no room for so many: take fewer, or none, and do not
  // refuse.
  bool yields = false;
  // Who chooses when. Tokens of a prompt share a choice: so many, or up to four times as many where
  // a KV head gains little by choosing. A token of an answer chooses for itself, or for up to
  // `every` tokens.
  std::int64_t chunk = 16;
  std::int64_t queries = 16;  // how many of those tokens choose for all of them: the last ones
  std::int64_t every = 16;    // most tokens of an answer from one choice to the next
  // Gaining little: when a choice gives recalled blocks less than so much more of the head's
  // attention than the former choice would have, the next one comes after twice as many tokens. Of
  // an answer's tokens five times as much is asked. In [0, 1]; 0: as often as a head may.
  double least_gain = 0.01;
  // A recalled block moves back into the cache, when its layer (with grouping head: its KV head)
  // evicts, for a block that it was given so many times the attention of since the last eviction,
  // by the queries that the policy counts. 0: never.
  double promotion = 2.0;
  // Where evicted blocks are kept: a new file; empty: memory. Where there is no room for more, the
  // oldest go first, as at the limits, and EngineMetrics::recall_limited_by says why.
  std::string store_file;
  std::int64_t limit_bytes = 0;   // of the second tier; the oldest go first; 0: none
  std::int64_t limit_tokens = 0;  // likewise, of each KV head; 0: none, else at least block_size
  // How the second tier holds keys and values. nullopt: int8, or as the cache does where that is
  // int8 or int4.
  std::optional<KvType> kv_type;
  friend bool operator==(const RecallConfig&, const RecallConfig&) = default;
};

}  // namespace carousel
