// SPDX-License-Identifier: Apache-2.0
// A sequence's blocks as memory: where a block lies, and its keys and values in and out of it.
#pragma once

#include <cstdint>

#include "cache/block_shape.h"
#include "cache/block_table.h"
#include "engine/open_blocks.h"
#include "engine/shared_cache.h"
#include "eviction/policy.h"

namespace carousel {

// A block's memory and how keys and values lie in it.
struct BlockPlace {
  std::byte* data = nullptr;
  const BlockShape* shape = nullptr;
};

// Of one sequence. What it refers to outlives it.
class BlockAccess {
 public:
  BlockAccess(SharedCache* shared, const SequenceTables* tables)
      : shared_(shared), tables_(tables), open_(shared->open_shapes()) {}

  // Tokens from here on are the step's at hand; those before were there already.
  void BeginStep(Position first_logical) { first_logical_ = first_logical; }
  // What another sequence of the same settings, whose table is this one's as well, has open.
  void CopyFrom(const BlockAccess& from) {
    open_.CopyFrom(from.open_);
    first_logical_ = from.first_logical_;
  }
  // The step's tokens are there to stay.
  void Commit();

  BlockPlace Place(std::int64_t group, const TableEntry& entry);
  // Codes the step's keys and values of a group into the last slots of its table. Rows hold all of
  // the layer's heads: k [tokens, Hkv * key_dim], v [tokens, Hkv * value_dim].
  void Write(std::int64_t group, const float* k, const float* v);
  std::int64_t open_bytes() const { return open_.bytes(); }

 private:
  void WriteEntry(std::int64_t group, const TableEntry& entry, const float* k, const float* v);
  void Seal(std::int64_t group, const TableEntry& entry);

  SharedCache* shared_;
  const SequenceTables* tables_;
  OpenBlocks open_;
  Position first_logical_;
};

// A group's blocks for its policy.
class GroupReader final : public BlockReader {
 public:
  GroupReader(BlockAccess* blocks, const SequenceTables* tables, std::int64_t group)
      : blocks_(blocks), tables_(tables), group_(group) {}

  void ReadKeys(std::int64_t entry, std::int64_t head, float* to) const override;
  void ReadValues(std::int64_t entry, std::int64_t head, float* to) const override;

 private:
  BlockPlace Place(std::int64_t entry) const;

  BlockAccess* blocks_;
  const SequenceTables* tables_;
  std::int64_t group_;
};

}  // namespace carousel
