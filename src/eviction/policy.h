// SPDX-License-Identifier: Apache-2.0
// What an eviction policy is: it watches the steps of one cache group and says which blocks go.
// docs/add-a-policy.md adds one; registry.h gives it a name.
#pragma once

#include <cstdint>
#include <memory>
#include <span>
#include <vector>

#include "cache/block_shape.h"
#include "cache/block_table.h"
#include "carousel/eviction_config.h"
#include "carousel/types.h"
#include "rope/rope_spec.h"

namespace carousel {

// What a policy is made from. The references are valid during the factory's call only.
struct PolicyContext {
  const EvictionConfig& config;  // Validate has accepted it
  const BlockShape& shape;       // of the group's blocks: block_size, kv_heads, key_dim, value_dim
  const LayerRope& rope;         // of the group's layer; rotated_dims 0: positions are not rotated
  std::int64_t query_heads = 0;  // that read the group's KV heads, query_heads / kv_heads each
  float scale = 1.0F;            // of the dot product
  std::int64_t group = 0;        // its number, so that random choices differ between groups
};

// A step that is about to run.
struct PolicyStep {
  std::int64_t tokens = 0;       // that it appends
  std::int64_t prompt_left = 0;  // prompt tokens that follow after it; 0 in decode
};

// A step that has run, as one group saw it. Valid during the call only.
struct Observation {
  std::span<const TableEntry> entries;  // the step's own tokens included; all but the last are full
  std::int64_t counted_queries = 0;     // what CountedQueries asked for
  // [entries * block_size]: attention mass by token, summed over the group's query heads and the
  // counted queries. Empty when counted_queries is 0.
  std::span<const float> token_mass;
  // The step's queries, keys and values as the model gave them (RoPE applied at the written
  // positions); null unless WantsVectors. Row t of q starts at q + t * q_stride and holds
  // [query_heads, key_dim] of this group; k and v likewise with kv_heads.
  std::int64_t tokens = 0;
  Position first_written;  // of the step's first token
  Position first_logical;
  const float* q = nullptr;
  const float* k = nullptr;
  const float* v = nullptr;
  std::int64_t q_stride = 0;
  std::int64_t k_stride = 0;
  std::int64_t v_stride = 0;
};

// Reads the group's blocks through their codec. Thread-safe.
class BlockReader {
 public:
  virtual ~BlockReader() = default;
  // One KV head's keys, rotated to their written positions: to [key_dim, block_size].
  virtual void ReadKeys(std::int64_t entry, std::int64_t head, float* to) const = 0;
  // One KV head's values: to [block_size, value_dim].
  virtual void ReadValues(std::int64_t entry, std::int64_t head, float* to) const = 0;
};

// A group between two steps, when something must go.
struct GroupView {
  std::span<const TableEntry> entries;
  // Who may go: ascending indices of full blocks outside the start and recent areas, not pinned.
  std::span<const std::int64_t> candidates;
  std::span<const Position> attention;  // [entries]: v of each entry's first token
  Position next_attention;              // v of the next token
  const BlockReader* blocks = nullptr;
};

// One object per cache group; entry i of its calls is entry i of the group's table. The engine
// calls
//   CountedQueries, then Observe           once per step,
//   Score or Choose, Erase, then Insert    between steps, when something must go,
//   Clone                                  between steps, when a sequence forks,
//   Clear                                  when the sequence is forgotten,
// from one thread at a time; other groups' objects may run beside it. The same calls with the same
// seed give the same answers: a policy has no clock and no global state. Score and Choose leave
// none either: a step that finds no room is planned again, and they are asked again.
class Policy {
 public:
  virtual ~Policy() = default;

  // Another one that knows the same and will say the same, for a sequence that forks: a copy.
  virtual std::unique_ptr<Policy> Clone() const = 0;

  // How many of the step's queries, its last ones, the mass is to be gathered from. 0 costs
  // nothing; each counted query costs the kernel an addition per key.
  virtual std::int64_t CountedQueries(const PolicyStep& step) const = 0;
  // Whether Observe is to be handed queries, keys and values.
  virtual bool WantsVectors() const { return false; }
  // Blocks that are new in `entries` start here.
  virtual void Observe(const Observation& observation) = 0;

  // scores[i] says how much candidates[i] matters: the lowest go. Infinity: nothing is known
  // against it. Comparable between the KV heads of a layer, which an adaptive budget relies on.
  virtual void Score(const GroupView& view, std::span<double> scores) = 0;
  // The same by token, [candidates, block_size], for KVCrush; by default a block's tokens all have
  // its score.
  virtual void ScoreTokens(const GroupView& view, std::span<double> scores);
  // The `count` entries that go, ascending, out of the candidates, of which there are at least so
  // many. By default the lowest scores, of equal ones the older.
  virtual std::vector<std::int64_t> Choose(const GroupView& view, std::int64_t count);

  // Entries that left the table, ascending; what is known of them is forgotten, and later entries
  // move up.
  virtual void Erase(std::span<const std::int64_t> entries) = 0;
  // A block that recall has brought back for good: it is entry `entry` now, and later entries move
  // down. Nothing is known of it before the next Observe.
  virtual void Insert(std::int64_t entry) = 0;
  virtual void Clear() = 0;
  // What it remembers, in bytes, about: checkpoints have a limit, and a copy of it is part of each.
  virtual std::int64_t bytes() const { return 0; }
};

// What a list's items take.
template <typename T>
std::int64_t BytesOf(const std::vector<T>& list) {
  return static_cast<std::int64_t>(list.size() * sizeof(T));
}

// The `count` candidates with the lowest score, ascending; of equal scores the older goes.
std::vector<std::int64_t> LowestScores(std::span<const std::int64_t> candidates,
                                       std::span<const double> scores, std::int64_t count);

// Takes `entries` (ascending) out of a list that has `width` items per entry of the table.
template <typename T>
void EraseEntries(std::span<const std::int64_t> entries, std::int64_t width, std::vector<T>* list) {
  const auto step = static_cast<std::size_t>(width);
  std::size_t kept = 0;
  std::size_t next = 0;
  for (std::size_t i = 0; i * step < list->size(); ++i) {
    if (next < entries.size() && static_cast<std::size_t>(entries[next]) == i) {
      ++next;
      continue;
    }
    for (std::size_t j = 0; j < step; ++j) (*list)[kept * step + j] = (*list)[i * step + j];
    ++kept;
  }
  list->resize(kept * step);
}

// Makes room for an entry in such a list, if it reaches so far; its items are T().
template <typename T>
void InsertEntry(std::int64_t entry, std::int64_t width, std::vector<T>* list) {
  if (entry * width > std::ssize(*list)) return;
  list->insert(list->begin() + entry * width, static_cast<std::size_t>(width), T());
}

}  // namespace carousel
