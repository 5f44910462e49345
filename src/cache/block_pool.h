// SPDX-License-Identifier: Apache-2.0
// Memory for blocks, with a hard limit.
#pragma once

#include <cstddef>
#include <cstdint>
#include <functional>
#include <optional>
#include <span>
#include <utility>
#include <vector>

#include "cache/block_shape.h"
#include "cache/slab_source.h"
#include "carousel/types.h"

namespace carousel {

class BlockPool;

// Bytes that several pools may hold together.
class ByteBudget {
 public:
  // Makes pools but `taker` return about so many bytes, if they can.
  using Collect = std::function<void(std::int64_t bytes, const BlockPool* taker)>;

  // 0: no limit.
  explicit ByteBudget(std::int64_t limit_bytes, Collect collect = nullptr)
      : limit_(limit_bytes), collect_(std::move(collect)) {}
  // For `taker`. False: the limit does not allow it.
  bool Take(std::int64_t bytes, const BlockPool* taker) {
    if (limit_ > 0 && bytes <= limit_ && bytes > limit_ - used_ && collect_)
      collect_(bytes - (limit_ - used_), taker);
    if (limit_ > 0 && bytes > limit_ - used_) return false;
    used_ += bytes;
    return true;
  }
  void Return(std::int64_t bytes) { used_ -= bytes; }
  std::int64_t limit() const { return limit_; }
  std::int64_t used() const { return used_; }

 private:
  std::int64_t limit_;
  std::int64_t used_ = 0;
  Collect collect_;
};

// Blocks of one shape. Grows by slabs that are never moved, so block addresses stay valid; a freed
// block is handed out again before the pool grows. The budget counts what is reserved, used or not.
// A slab of which no block is in use can go back where other pools need the bytes; the ids of its
// blocks are given to blocks of later slabs.
class BlockPool {
 public:
  // `budget` and `source` outlive the pool; no source: the heap.
  BlockPool(const BlockShape& shape, ByteBudget* budget, SlabSource* source = nullptr);
  ~BlockPool();
  BlockPool(const BlockPool&) = delete;
  BlockPool& operator=(const BlockPool&) = delete;

  // Makes sure that `blocks` blocks can be in use at once without growing. Throws carousel::Error
  // (kOutOfMemory) when the budget, the machine or the source does not have them; the pool is then
  // unchanged.
  void Reserve(std::int64_t blocks);
  // The same by whole slabs, which more blocks than were asked for may fill; where there is no room
  // for one, by what there is room for. Throws what the source does; what has been taken by then
  // stays. CHECKs that the budget allows it.
  void GrowTo(std::int64_t blocks);
  // A block with undefined content. nullopt when the budget is spent; throws as Reserve when the
  // machine or the source has no more.
  std::optional<BlockId> Allocate();
  // One more holder of a block, which is then nobody's to write to. CHECKs that it is in use.
  void Share(BlockId block);
  bool is_shared(BlockId block) const {
    return holders_[static_cast<std::size_t>(block.value)] > 1;
  }
  // One holder less; of none the block is free. CHECKs that it is in use.
  void Free(BlockId block);
  // Returns slabs without a block in use to the budget and the heap, until it has returned `bytes`
  // or has no more of them. Returns how many bytes. The pool has no source of its own. Throws
  // nothing.
  std::int64_t ReturnFreeSlabs(std::int64_t bytes) noexcept;

  std::byte* data(BlockId block);
  const std::byte* data(BlockId block) const;
  const BlockShape& shape() const { return shape_; }
  // However many hold each of them.
  std::int64_t blocks_in_use() const { return in_use_; }
  std::int64_t blocks_free() const { return static_cast<std::int64_t>(free_.size()); }
  std::int64_t blocks_reserved() const { return reserved_; }
  // CHECKs that each block has `holders[block]` holders, 0 beyond their end, and that those with
  // none are free, each once.
  void CheckIntegrity(std::span<const std::int32_t> holders) const;

 private:
  std::int64_t SlabBlocks() const;
  std::int32_t& HoldersOf(BlockId block);
  bool Grow(std::int64_t blocks);
  bool GrowOrExplain(std::int64_t blocks);

  // A number of blocks that lie one behind the other.
  struct Slab {
    std::byte* data = nullptr;
    std::int64_t blocks = 0;
    std::int64_t free = 0;  // of them, while they are being counted
  };
  std::size_t SlabOf(BlockId block) const;
  void ReturnSlab(std::size_t slab);

  BlockShape shape_;
  std::size_t block_bytes_;
  ByteBudget* budget_;
  HeapSlabs heap_;
  SlabSource* source_;
  std::vector<Slab> slabs_;            // each of any number of blocks; by address
  std::vector<std::byte*> addresses_;  // by BlockId; null: no slab has it
  std::vector<std::int32_t> holders_;  // likewise
  std::vector<BlockId> free_;
  std::vector<BlockId> unused_;  // ids that no slab has
  std::int64_t reserved_ = 0;
  std::int64_t in_use_ = 0;
};

}  // namespace carousel
