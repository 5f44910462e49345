// SPDX-License-Identifier: Apache-2.0
#include "cache/block_table.h"

#include <algorithm>
#include <cstring>
#include <optional>
#include <utility>

#include "base/check.h"
#include "cache/moved_blocks.h"
#include "carousel/error.h"

namespace carousel {
namespace {

PositionPolicy FirstMode(const PositionRules& rules) {
  if (rules.policy != PositionPolicy::kAuto) return rules.policy;
  // Without a known window nothing says how far keeping is safe.
  return rules.trained_window > 0 ? PositionPolicy::kKeep : PositionPolicy::kCompact;
}

}  // namespace

SequenceTables::SequenceTables(std::int64_t groups, std::int64_t block_size,
                               const PositionRules& rules)
    : block_size_(block_size),
      rules_(rules),
      mode_(FirstMode(rules)),
      tables_(static_cast<std::size_t>(groups)) {
  CAROUSEL_CHECK_GT(block_size, 0);
  CAROUSEL_CHECK(rules.rotation != Rotation::kAuto);
}

Position SequenceTables::AttentionPosition(std::int64_t group, std::int64_t entry) const {
  if (mode_ == PositionPolicy::kKeep) {
    return table(group).entries_[static_cast<std::size_t>(entry)].logical;
  }
  return Position{entry * block_size_};  // all entries before it are full
}

Position SequenceTables::NextAttentionPosition(std::int64_t group) const {
  return NextAttentionPosition(group, 0);
}

std::int64_t SequenceTables::ShiftOf(std::int64_t group, std::int64_t entry) const {
  const Position written = table(group).entries_[static_cast<std::size_t>(entry)].written;
  return Shift(NextAttentionPosition(group), AttentionPosition(group, entry), written);
}

Position SequenceTables::NextAttentionPosition(std::int64_t group,
                                               std::int64_t recalled_blocks) const {
  if (mode_ == PositionPolicy::kKeep) return logical_length_;
  return Position{table(group).resident_tokens_ + recalled_blocks * block_size_};
}

void SequenceTables::Merge(std::int64_t group, std::span<const RecalledBlock> recalled,
                           std::vector<BlockPlacement>* to) const {
  const Position next = NextAttentionPosition(group, std::ssize(recalled));
  const auto entries = table(group).entries();
  to->clear();
  std::size_t entry = 0;
  std::size_t block = 0;
  while (entry < entries.size() || block < recalled.size()) {
    const bool is_recalled =
        entry == entries.size() ||
        (block < recalled.size() && recalled[block].logical < entries[entry].logical);
    const Position logical = is_recalled ? recalled[block].logical : entries[entry].logical;
    const Position written = is_recalled ? recalled[block].written : entries[entry].written;
    const Position attention =
        mode_ == PositionPolicy::kKeep
            ? logical
            : Position{std::ssize(*to) * block_size_};  // all before are full
    to->push_back({.index = static_cast<std::int64_t>(is_recalled ? block++ : entry++),
                   .recalled = is_recalled,
                   .attention = attention,
                   .shift = Shift(next, attention, written)});
  }
}

BlockPlacement SequenceTables::CandidatePlacement(std::int64_t group,
                                                  const RecalledBlock& block) const {
  const Position attention = mode_ == PositionPolicy::kKeep ? block.logical : Position{0};
  return {.recalled = true,
          .attention = attention,
          .shift = Shift(NextAttentionPosition(group), attention, block.written)};
}

std::int64_t SequenceTables::LargestNext() const {
  std::int64_t largest = 0;
  for (std::int64_t group = 0; group < groups(); ++group) {
    largest = std::max(largest, NextAttentionPosition(group).value);
  }
  return largest;
}

// Inside a block query rotation can neither re-base b nor leave kKeep, so it never enters a block
// that the window does not hold whole.
bool SequenceTables::PassesWindow(Position position, std::int64_t tokens) const {
  std::int64_t end = position.value + tokens;
  if (rules_.rotation == Rotation::kQuery)
    end = (end + block_size_ - 1) / block_size_ * block_size_;
  return end > rules_.trained_window;
}

bool SequenceTables::MustCompact(std::int64_t tokens) const {
  return rules_.policy == PositionPolicy::kAuto && mode_ == PositionPolicy::kKeep &&
         PassesWindow(logical_length_, tokens);
}

std::int64_t SequenceTables::LimitStep(std::int64_t tokens) const {
  const std::int64_t into_block = logical_length_.value % block_size_;
  if (rules_.rotation != Rotation::kQuery || rules_.trained_window == 0 || into_block == 0)
    return tokens;
  const bool limits = MustCompact(tokens) ||
                      (mode_ == PositionPolicy::kCompact && PassesWindow(next_written_, tokens));
  return limits ? std::min(tokens, block_size_ - into_block) : tokens;
}

std::int64_t SequenceTables::LimitTogether(std::int64_t tokens) const {
  const std::int64_t into_block = logical_length_.value % block_size_;
  const std::int64_t room = into_block == 0 ? block_size_ - 1 : block_size_ - into_block;
  const std::int64_t most = std::min(tokens, room);
  return MustCompact(most) == MustCompact(1) ? most : 1;
}

SequenceTables SequenceTables::Fork(BlockPools& pools) const {
  SequenceTables fork = *this;
  for (std::int64_t group = 0; group < groups(); ++group) {
    for (const TableEntry& entry : table(group).entries()) pools.of(group).Share(entry.block);
  }
  return fork;
}

void SequenceTables::MakeWritable(std::int64_t group, std::int64_t entry, BlockPool& pool) {
  TableEntry& of =
      tables_[static_cast<std::size_t>(group)].entries_[static_cast<std::size_t>(entry)];
  if (!pool.is_shared(of.block)) return;
  const std::optional<BlockId> own = pool.Allocate();
  if (!own) FailAppend(of.tokens);
  std::memcpy(pool.data(*own), std::as_const(pool).data(of.block), pool.shape().bytes());
  pool.Free(of.block);
  of.block = *own;
}

bool SequenceTables::CopyOut(const BlockPools& pools, MovedBlocks* to) const {
  for (std::int64_t group = 0; group < groups(); ++group) {
    const BlockPool& pool = pools.of(group);
    for (const TableEntry& entry : table(group).entries()) {
      if (!to->Append({pool.data(entry.block), pool.shape().bytes()})) return false;
    }
  }
  return true;
}

void SequenceTables::MoveOut(BlockPools& pools) {
  for (std::int64_t group = 0; group < groups(); ++group) {
    for (TableEntry& entry : tables_[static_cast<std::size_t>(group)].entries_)
      pools.of(group).Free(std::exchange(entry.block, BlockId{}));
  }
}

void SequenceTables::MoveIn(const MovedBlocks& from, BlockPools& pools) {
  std::vector<BlockId> blocks;  // of all groups, in order
  std::size_t total = 0;
  for (const BlockTable& table : tables_) total += table.entries_.size();
  blocks.reserve(total);
  std::size_t offset = 0;
  try {
    for (std::int64_t group = 0; group < groups(); ++group) {
      BlockPool& pool = pools.of(group);
      for (const TableEntry& entry : table(group).entries()) {
        const std::optional<BlockId> block = pool.Allocate();
        if (!block) FailAppend(entry.tokens);
        blocks.push_back(*block);
        from.Read(offset, {pool.data(*block), pool.shape().bytes()});
        offset += pool.shape().bytes();
      }
    }
  } catch (...) {
    std::size_t next = 0;
    for (std::int64_t group = 0; group < groups(); ++group) {
      for (std::size_t i = 0; i < table(group).entries().size() && next < blocks.size(); ++i)
        pools.of(group).Free(blocks[next++]);
    }
    throw;
  }
  std::size_t next = 0;
  for (BlockTable& table : tables_) {
    for (TableEntry& entry : table.entries_) entry.block = blocks[next++];
  }
}

void SequenceTables::Evict(std::int64_t group, std::span<const std::int64_t> entries,
                           BlockPool& pool) {
  auto& table = tables_[static_cast<std::size_t>(group)];
  std::size_t next_victim = 0;
  std::size_t kept = 0;
  for (std::size_t i = 0; i < table.entries_.size(); ++i) {
    if (next_victim < entries.size() && static_cast<std::size_t>(entries[next_victim]) == i) {
      CAROUSEL_CHECK_EQ(table.entries_[i].tokens, block_size_);
      pool.Free(table.entries_[i].block);
      table.resident_tokens_ -= block_size_;
      table.evicted_tokens_ += block_size_;
      ++next_victim;
    } else {
      table.entries_[kept++] = table.entries_[i];
    }
  }
  CAROUSEL_CHECK_EQ(next_victim, entries.size());  // ascending, without repeats, all there
  table.entries_.resize(kept);
}

std::int64_t SequenceTables::Return(std::int64_t group, const RecalledBlock& block,
                                    BlockPool& pool) {
  auto& table = tables_[static_cast<std::size_t>(group)];
  const auto place = std::lower_bound(
      table.entries_.begin(), table.entries_.end(), block.logical,
      [](const TableEntry& entry, Position logical) { return entry.logical < logical; });
  CAROUSEL_CHECK(place != table.entries_.end());  // the newest block is never evicted
  CAROUSEL_CHECK(place->logical != block.logical);
  const std::optional<BlockId> memory = pool.Allocate();
  CAROUSEL_CHECK(memory.has_value());
  table.resident_tokens_ += block_size_;
  table.evicted_tokens_ -= block_size_;
  const std::int64_t entry = place - table.entries_.begin();
  table.entries_.insert(place, {.block = *memory,
                                .written = block.written,
                                .logical = block.logical,
                                .tokens = block_size_});
  return entry;
}

void SequenceTables::BeginStep(std::int64_t tokens) {
  if (MustCompact(tokens)) mode_ = PositionPolicy::kCompact;
  if (mode_ != PositionPolicy::kCompact) return;
  // Key rotation rewrites the block that is being filled as well, so it may re-base anywhere.
  if (rules_.rotation == Rotation::kKeys) next_written_ = Position{LargestNext()};
  // Query rotation may not: inside a block, s must be one number. The margin covers the steps until
  // the next boundary, so b + tokens never passes the window in between.
  const std::int64_t margin = rules_.max_step_tokens + block_size_;
  if (rules_.rotation != Rotation::kKeys && at_block_boundary() && rules_.trained_window > 0 &&
      next_written_.value + margin > rules_.trained_window) {
    next_written_ = Position{LargestNext()};
  }
}

void SequenceTables::KeysRotated(std::int64_t group) {
  auto& entries = tables_[static_cast<std::size_t>(group)].entries_;
  for (std::size_t i = 0; i < entries.size(); ++i) {
    entries[i].written += -ShiftOf(group, static_cast<std::int64_t>(i));
  }
}

void SequenceTables::FailAppend(std::int64_t tokens) const {
  throw Error(ErrorCode::kOutOfMemory, "limit_bytes",
              fmt::format("the cache's limit is spent: {} tokens are resident and {} more do not "
                          "fit; raise the limit or lower max_cache_size",
                          LargestNext(), tokens));
}

void SequenceTables::Append(std::int64_t tokens, BlockPools& pools) {
  CAROUSEL_CHECK_GT(tokens, 0);
  const std::int64_t into_block = logical_length_.value % block_size_;
  const std::int64_t room = into_block == 0 ? 0 : block_size_ - into_block;
  const std::int64_t new_blocks =
      (std::max<std::int64_t>(0, tokens - room) + block_size_ - 1) / block_size_;

  std::vector<BlockId> blocks;  // [groups, new_blocks]
  blocks.reserve(static_cast<std::size_t>(groups() * new_blocks));
  const auto give_back = [&] {
    for (std::size_t i = 0; i < blocks.size(); ++i) {
      pools.of(static_cast<std::int64_t>(i) / new_blocks).Free(blocks[i]);
    }
  };
  try {
    for (BlockTable& table : tables_) {
      const std::size_t wanted = table.entries_.size() + static_cast<std::size_t>(new_blocks);
      if (wanted > table.entries_.capacity()) table.entries_.reserve(2 * wanted);
    }
    for (std::int64_t group = 0; into_block > 0 && group < groups(); ++group)
      MakeWritable(group, std::ssize(table(group).entries()) - 1, pools.of(group));
    for (std::int64_t i = 0; i < groups() * new_blocks; ++i) {
      const std::optional<BlockId> block = pools.of(i / new_blocks).Allocate();
      if (!block) FailAppend(tokens);
      blocks.push_back(*block);
    }
  } catch (...) {
    give_back();
    throw;
  }

  for (std::int64_t group = 0; group < groups(); ++group) {
    auto& table = tables_[static_cast<std::size_t>(group)];
    const std::int64_t in_last = std::min(room, tokens);
    if (in_last > 0) table.entries_.back().tokens += in_last;
    for (std::int64_t i = 0; i < new_blocks; ++i) {
      const std::int64_t before = in_last + i * block_size_;
      table.entries_.push_back({.block = blocks[static_cast<std::size_t>(group * new_blocks + i)],
                                .written = next_written_ + before,
                                .logical = logical_length_ + before,
                                .tokens = std::min(block_size_, tokens - before)});
    }
    table.resident_tokens_ += tokens;
  }
  logical_length_ += tokens;
  next_written_ += tokens;
}

void SequenceTables::Truncate(const Mark& mark, BlockPools& pools) {
  CAROUSEL_CHECK_LE(mark.logical_length.value, logical_length_.value);
  const std::int64_t tokens = logical_length_ - mark.logical_length;
  for (std::int64_t group = 0; group < groups(); ++group) {
    auto& table = tables_[static_cast<std::size_t>(group)];
    while (!table.entries_.empty() && table.entries_.back().logical >= mark.logical_length) {
      pools.of(group).Free(table.entries_.back().block);
      table.entries_.pop_back();
    }
    if (!table.entries_.empty()) {
      TableEntry& last = table.entries_.back();
      last.tokens = std::min(last.tokens, mark.logical_length - last.logical);
    }
    table.resident_tokens_ -= tokens;
  }
  logical_length_ = mark.logical_length;
  next_written_ = mark.next_written;
  mode_ = mark.mode;
}

void SequenceTables::Clear(BlockPools& pools) {
  for (std::int64_t group = 0; group < groups(); ++group) {
    auto& table = tables_[static_cast<std::size_t>(group)];
    for (const TableEntry& entry : table.entries_) {
      if (entry.block != BlockId{}) pools.of(group).Free(entry.block);  // not moved out
    }
    table = BlockTable();
  }
  logical_length_ = Position{0};
  next_written_ = Position{0};
  mode_ = FirstMode(rules_);
}

void SequenceTables::CheckIntegrity() const {
  for (std::int64_t group = 0; group < groups(); ++group) {
    const BlockTable& table = tables_[static_cast<std::size_t>(group)];
    std::int64_t tokens = 0;
    for (std::size_t i = 0; i < table.entries_.size(); ++i) {
      const TableEntry& entry = table.entries_[i];
      const bool last = i + 1 == table.entries_.size();
      CAROUSEL_CHECK_GT(entry.tokens, 0);
      if (!last) {
        CAROUSEL_CHECK_EQ(entry.tokens, block_size_);
        CAROUSEL_CHECK_GE(table.entries_[i + 1].logical - entry.logical, block_size_);
      }
      CAROUSEL_CHECK_EQ(entry.logical.value % block_size_, 0);
      CAROUSEL_CHECK_EQ(ShiftOf(group, static_cast<std::int64_t>(i)) % block_size_, 0);
      tokens += entry.tokens;
    }
    CAROUSEL_CHECK_EQ(tokens, table.resident_tokens_);
    CAROUSEL_CHECK_EQ(table.resident_tokens_ + table.evicted_tokens_, logical_length_.value);
    if (!table.entries_.empty()) {
      const TableEntry& last = table.entries_.back();
      CAROUSEL_CHECK_EQ((last.logical + last.tokens).value, logical_length_.value);
    }
  }
}

}  // namespace carousel
