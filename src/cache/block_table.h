// SPDX-License-Identifier: Apache-2.0
// The only owner of positions: which blocks a sequence holds in each cache group, where each was
// written, where each stands now, and what was evicted. position_ids, query shifts and key deltas
// all come from here.
#pragma once

#include <cstdint>
#include <span>
#include <vector>

#include "cache/block_pools.h"
#include "carousel/enums.h"
#include "carousel/types.h"

namespace carousel {

class MovedBlocks;

// A block of consecutive tokens. All but a table's last entry are full.
struct TableEntry {
  BlockId block;
  Position written;  // a: of the block's first token, the position_ids that the model was given
  Position logical;  // of the block's first token: tokens of the stream before it
  std::int64_t tokens = 0;  // in it
};

// A full block that the table has lost and that takes part in attention all the same (recall).
struct RecalledBlock {
  Position written;  // a, as when it was in the table
  Position logical;
};

// Where attention sees a block among others.
struct BlockPlacement {
  std::int64_t index = 0;  // of the table's entry, or of the recalled block
  bool recalled = false;
  Position attention;      // v of the first token
  std::int64_t shift = 0;  // s
};

// One sequence's blocks in one cache group, in stream order.
class BlockTable {
 public:
  std::span<const TableEntry> entries() const { return entries_; }
  std::int64_t resident_tokens() const { return resident_tokens_; }
  std::int64_t evicted_tokens() const { return evicted_tokens_; }

 private:
  friend class SequenceTables;
  std::vector<TableEntry> entries_;
  std::int64_t resident_tokens_ = 0;
  std::int64_t evicted_tokens_ = 0;
};

// How positions are to be handed out. Everything is settled before: no kAuto rotation, no keep past
// the window by accident.
struct PositionRules {
  PositionPolicy policy = PositionPolicy::kCompact;
  Rotation rotation = Rotation::kQuery;  // not kAuto
  std::int64_t trained_window = 0;       // 0: unknown
  std::int64_t max_step_tokens = 1;      // most tokens that one step appends
};

// One sequence: a table per cache group and the positions that they share.
//
// A step is Evict and Return (any number), BeginStep, rotate keys if asked (ShiftOf, then
// KeysRotated), Append; Truncate where the step fails. All groups see the same tokens, so logical
// positions and the fill of the last block are the same in all; how many blocks are left, and
// therefore positions, are each group's own.
class SequenceTables {
 public:
  SequenceTables(std::int64_t groups, std::int64_t block_size, const PositionRules& rules);

  std::int64_t groups() const { return static_cast<std::int64_t>(tables_.size()); }
  std::int64_t block_size() const { return block_size_; }
  const BlockTable& table(std::int64_t group) const {
    return tables_[static_cast<std::size_t>(group)];
  }
  // Tokens of the stream so far: the logical position of the next token.
  Position logical_length() const { return logical_length_; }
  // b: the position_ids of the next token.
  Position next_written() const { return next_written_; }
  // kKeep or kCompact: what holds now.
  PositionPolicy mode() const { return mode_; }
  bool at_block_boundary() const { return logical_length_.value % block_size_ == 0; }

  // v of an entry's first token / of the next token.
  Position AttentionPosition(std::int64_t group, std::int64_t entry) const;
  Position NextAttentionPosition(std::int64_t group) const;
  // s = (v_q - v_k) - (b - a): how far a query must still be rotated to stand at the right distance
  // from this block. The same for all tokens of the block and all queries of a step. A multiple of
  // block_size. Key rotation applies R(-s) to the keys instead.
  std::int64_t ShiftOf(std::int64_t group, std::int64_t entry) const;

  // The same for a group's entries and recalled blocks together: as if the table held them all.
  // `recalled` has ascending logical positions that the table does not. `to` gets all of them in
  // stream order.
  void Merge(std::int64_t group, std::span<const RecalledBlock> recalled,
             std::vector<BlockPlacement>* to) const;
  Position NextAttentionPosition(std::int64_t group, std::int64_t recalled_blocks) const;
  // For a block that is weighed before it is recalled: the farthest place it could take, before all
  // that is resident. kKeep: its own.
  BlockPlacement CandidatePlacement(std::int64_t group, const RecalledBlock& block) const;

  // The most of `tokens` that the next step may append so that b stays inside the trained window:
  // inside a block b can neither be re-based nor kKeep be left.
  std::int64_t LimitStep(std::int64_t tokens) const;
  // The most of `tokens` that a step may append so that each could as well be a step of its own,
  // and the first of them the last: nothing is settled anew between them, and a block that one of
  // them begins is not filled by another.
  std::int64_t LimitTogether(std::int64_t tokens) const;

  // The same sequence once more, in the same blocks: each has one holder more. Between steps.
  SequenceTables Fork(BlockPools& pools) const;
  // Gives an entry a block of its own, with the same content, where others hold it as well. Throws
  // carousel::Error (kOutOfMemory); nothing is changed then.
  void MakeWritable(std::int64_t group, std::int64_t entry, BlockPool& pool);

  // Appends what all blocks hold, group by group, to `to`. False: it does not take all of it.
  bool CopyOut(const BlockPools& pools, MovedBlocks* to) const;
  // Gives all blocks back, which have been copied; the table then has entries without blocks, until
  // MoveIn or Clear.
  void MoveOut(BlockPools& pools);
  // The way back. All or nothing: throws carousel::Error (kOutOfMemory) when the pools are spent,
  // and as MovedBlocks::Read.
  void MoveIn(const MovedBlocks& from, BlockPools& pools);

  // Takes full blocks out of a group; `entries` are ascending indices. Their ids go back to the
  // pool.
  void Evict(std::int64_t group, std::span<const std::int64_t> entries, BlockPool& pool);
  // Puts a full block that was evicted back where it stood in the stream, in memory of the pool,
  // which has room for it. Returns its entry.
  std::int64_t Return(std::int64_t group, const RecalledBlock& block, BlockPool& pool);
  // Before `tokens` are appended: leaves kKeep when kAuto must, re-bases b at a block boundary
  // before it would pass the trained window (key rotation: always, to the largest count kept).
  // Shifts are valid after this.
  void BeginStep(std::int64_t tokens);
  // Tells that a group's keys were rewritten so that all its shifts are 0: a <- a - s.
  void KeysRotated(std::int64_t group);
  // Adds `tokens` to each group and takes the blocks for them; the one that is being filled becomes
  // the sequence's own. All or nothing: throws carousel::Error (kOutOfMemory) when the pools are
  // spent, and no position has changed.
  void Append(std::int64_t tokens, BlockPools& pools);
  // Where a step begins. Key rotation rewrites keys for the position that BeginStep settles, so its
  // marks are taken after that, others before.
  struct Mark {
    Position logical_length;
    Position next_written;
    PositionPolicy mode = PositionPolicy::kKeep;
  };
  Mark mark() const { return {logical_length_, next_written_, mode_}; }
  // Takes back what was appended since `mark`; nothing may have been evicted or returned since.
  void Truncate(const Mark& mark, BlockPools& pools);
  // Gives everything back and starts at 0.
  void Clear(BlockPools& pools);

  // CHECKs what must hold between steps: full blocks but the last, counts, strictly growing logical
  // positions, kept plus evicted is the length, no position moved.
  void CheckIntegrity() const;

 private:
  [[noreturn]] void FailAppend(std::int64_t tokens) const;
  std::int64_t LargestNext() const;
  // Whether so many tokens from a position on do not fit the trained window.
  bool PassesWindow(Position position, std::int64_t tokens) const;
  // Whether kAuto has to leave kKeep for a step of so many tokens.
  bool MustCompact(std::int64_t tokens) const;
  // s of a block written at `written` that stands at `attention`, while the next token is at
  // `next`.
  std::int64_t Shift(Position next, Position attention, Position written) const {
    return (next - attention) - (next_written_ - written);
  }

  std::int64_t block_size_;
  PositionRules rules_;
  PositionPolicy mode_;
  Position logical_length_;
  Position next_written_;
  std::vector<BlockTable> tables_;
};

}  // namespace carousel
