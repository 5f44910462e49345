// SPDX-License-Identifier: Apache-2.0
// The second tier of one sequence: blocks that it has lost, kept in a smaller codec so that
// attention can read them again. A lane holds one KV head of one layer; a lane's block is that
// head's keys and values of block_size tokens. Codes lie in slabs on the heap or in a mapped file.
//
// The tier is a help: where it cannot grow (a full disk, no memory), it says so and goes on as it
// does at its limit, with the oldest block making room. Lanes grow together, so that a disk which
// fills up leaves all of them as many blocks.
//
// Beside each block lies its sketch: numbers that say what its keys would score without reading
// them (attention/recall_sketch.h). Sketches always stay in memory and lie as a block's keys do,
// dimension-major and many to a tile, so that one sweep scores all of a lane.
#pragma once

#include <cstdint>
#include <memory>
#include <span>
#include <string>
#include <string_view>
#include <vector>

#include "cache/block_pool.h"
#include "cache/block_shape.h"
#include "cache/tier_pools.h"
#include "carousel/types.h"

namespace carousel {

// A slot of a lane. Slots keep their number as long as their block stays.
struct StoredBlock {
  BlockId record;    // negative: the slot is free
  Position written;  // a, of the first token; never changes
  Position logical;  // of the first token
  bool present() const { return record.value >= 0; }
};

// One head of a block as the cache holds it.
struct BlockHead {
  const std::byte* data = nullptr;
  const BlockShape* shape = nullptr;
  std::int64_t head = 0;
};

// Sketches of slots [i * columns, (i + 1) * columns) lie in tiles[i], a key plane of `columns`
// tokens of `depth` numbers.
struct SketchTiles {
  static constexpr std::int64_t kColumns = 64;
  static constexpr KvType kType = KvType::kInt8;
  std::span<const AlignedBuffer<std::byte>> tiles;
  std::int64_t depth = 0;
};

class RecallStore {
 public:
  // `pools` outlive it.
  explicit RecallStore(TierPools* pools);
  // With pools of its own. Throws as they do.
  explicit RecallStore(const RecallStoreOptions& options);
  RecallStore(const RecallStore&) = delete;
  RecallStore& operator=(const RecallStore&) = delete;
  ~RecallStore();

  std::int64_t lanes() const { return static_cast<std::int64_t>(lanes_.size()); }
  // Stores a full block: its heads from block.head on, one in each lane from `first_lane` on, in
  // all of these or in none. Codes of the lane's own type are copied as they are. Where a lane is
  // full, its block of the lowest logical position goes, be it this one. `sketches` is [heads,
  // sketch_depth]. Does not throw.
  void Add(std::int64_t first_lane, Position written, Position logical, const BlockHead& block,
           std::span<const float> sketches) noexcept;
  // Becomes what `from` is, with the same pools: blocks are shared, sketches copied. Is empty.
  // Throws carousel::Error (kOutOfMemory) and std::bad_alloc where there is no room for as many; it
  // is empty then as well.
  void CopyFrom(const RecallStore& from);
  // Instead of Add, for a block that there is no memory to store.
  void Refuse(std::int64_t first_lane, std::int64_t lanes) noexcept;
  // Frees a slot that holds a block.
  void Remove(std::int64_t lane, std::int64_t slot);
  void Clear();

  // Slots that hold a block, in stream order.
  std::span<const std::int64_t> in_order(std::int64_t lane) const { return at(lane).in_order; }
  // [slots], free ones among them, in no order.
  std::span<const StoredBlock> slots(std::int64_t lane) const { return at(lane).slots; }
  SketchTiles sketches(std::int64_t lane) const {
    return {.tiles = at(lane).tiles, .depth = at(lane).spec.sketch_depth};
  }
  const BlockShape& shape(std::int64_t lane) const { return at(lane).spec.shape; }
  const std::byte* data(std::int64_t lane, std::int64_t slot) const;
  // The slot that holds the block of this logical position; -1: none does.
  std::int64_t Find(std::int64_t lane, Position logical) const;
  // Writes a slot's keys and values as `head` of a block of the given shape, at `to`.
  void Read(std::int64_t lane, std::int64_t slot, const BlockShape& shape, std::int64_t head,
            std::byte* to);

  std::int64_t blocks(std::int64_t lane) const { return std::ssize(at(lane).in_order); }
  std::int64_t stored_tokens() const;   // now, in the lane that holds most
  std::int64_t dropped_tokens() const;  // ever, for want of room, in the lane that lost most
  std::int64_t bytes() const;           // of codes in use and of sketches
  // How often the store could not grow below its limit, ever, and why the last time; empty: never.
  std::int64_t refused_growths() const { return refused_growths_; }
  const std::string& limited_by() const { return limited_by_; }
  std::int64_t bytes_per_round() const { return pools_->bytes_per_round(); }
  // CHECKs that each block in use is in one slot of one lane.
  void CheckIntegrity() const;
  // Adds what it holds, and CHECKs that its lists agree.
  void AddTo(Holdings* holdings) const;

 private:
  struct Lane {
    RecallLane spec;
    BlockPool* pool = nullptr;
    std::vector<StoredBlock> slots;
    std::vector<std::int64_t> free_slots;
    std::vector<std::int64_t> in_order;  // slots that hold a block, by logical position
    std::vector<AlignedBuffer<std::byte>> tiles;
    std::int64_t dropped_blocks = 0;
  };
  explicit RecallStore(std::unique_ptr<TierPools> own);
  const Lane& at(std::int64_t lane) const { return lanes_[static_cast<std::size_t>(lane)]; }
  void AddLane(const RecallLane& spec);
  void Grow();
  bool TryGrow() noexcept;
  void NoteRefusal(std::string_view reason) noexcept;
  bool MakeRoom(std::span<Lane> lanes, Position logical) noexcept;
  void Put(Lane* lane, Position written, Position logical, const BlockHead& block,
           std::span<const float> sketch);
  void RemoveFrom(Lane* lane, std::int64_t slot);
  void CountDropped(Lane* lane);

  std::unique_ptr<TierPools> own_pools_;  // null: others share them
  TierPools* pools_;
  std::vector<Lane> lanes_;
  AlignedBuffer<float> floats_;  // a head's keys or values, between two types of codes
  std::int64_t promised_ = 0;    // blocks in each lane, by the pools
  // That every lane can hold without asking for memory again: what is promised, once the lists have
  // room for it as well.
  std::int64_t capacity_ = 0;
  std::int64_t refused_growths_ = 0;
  std::string limited_by_;
  std::int64_t drops_until_retry_ = 0;  // over all lanes
};

}  // namespace carousel
