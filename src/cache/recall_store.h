// SPDX-License-Identifier: Apache-2.0
// The second tier: blocks that were evicted, kept in a smaller codec so that attention can read
// them again. A lane holds one KV head of one layer; a lane's block is that head's keys and values
// of block_size tokens. Codes lie in slabs on the heap or in a mapped file.
//
// Beside each block lies its sketch: numbers that say what its keys would score without reading
// them (attention/recall_sketch.h). Sketches always stay in memory and lie as a block's keys do,
// dimension-major and many to a tile, so that one sweep scores all of a lane.
#pragma once

#include <cstdint>
#include <memory>
#include <span>
#include <string>
#include <vector>

#include "cache/block_pool.h"
#include "cache/block_shape.h"
#include "cache/slab_source.h"
#include "carousel/types.h"

namespace carousel {

struct RecallLane {
  BlockShape shape;  // of stored blocks; kv_heads is 1
  std::int64_t sketch_depth = 0;
};

struct RecallStoreOptions {
  std::vector<RecallLane> lanes;
  std::string file;               // empty: the heap
  std::int64_t limit_bytes = 0;   // of codes and sketches together, shared by the lanes; 0: none
  std::int64_t limit_blocks = 0;  // of each lane; 0: none
};

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
  // Throws carousel::Error when the limit is below one block in each lane ("recall_limit") or the
  // file cannot be made ("recall_store").
  explicit RecallStore(const RecallStoreOptions& options);
  ~RecallStore();

  std::int64_t lanes() const { return static_cast<std::int64_t>(lanes_.size()); }
  // Stores a full block. Codes of the lane's own type are copied as they are. Where the lane is
  // full, the block of the lowest logical position goes, be it this one. `sketch` is
  // [sketch_depth]. Throws carousel::Error (kOutOfMemory) when the machine or the disk is full; the
  // lane is then unchanged.
  void Add(std::int64_t lane, Position written, Position logical, const BlockHead& block,
           std::span<const float> sketch);
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
            std::byte* to) const;

  std::int64_t blocks(std::int64_t lane) const { return std::ssize(at(lane).in_order); }
  std::int64_t stored_tokens() const;   // now, in the lane that holds most
  std::int64_t dropped_tokens() const;  // ever, because of the limit, in the lane that lost most
  std::int64_t bytes() const;           // of codes in use and of sketches
  // What one block costs in each lane, over all lanes: the least that a limit can be.
  std::int64_t bytes_per_round() const { return bytes_per_round_; }

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
  const Lane& at(std::int64_t lane) const { return lanes_[static_cast<std::size_t>(lane)]; }
  std::int64_t FreeSlot(Lane* lane);

  std::unique_ptr<SlabSource> slabs_;
  ByteBudget budget_;
  std::vector<std::unique_ptr<BlockPool>> pools_;  // one for each shape
  std::vector<Lane> lanes_;
  std::int64_t bytes_per_round_ = 0;
  std::int64_t most_blocks_ = 0;  // in a lane; 0: no limit
};

}  // namespace carousel
