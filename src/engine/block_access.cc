// SPDX-License-Identifier: Apache-2.0
#include "engine/block_access.h"

#include <algorithm>
#include <span>

#include "base/parallel.h"
#include "cache/block_codec.h"

namespace carousel {

BlockPlace BlockAccess::Place(std::int64_t group, const TableEntry& entry) {
  if (open_.exist() && entry.tokens < tables_->block_size()) {
    const bool is_new = entry.logical >= first_logical_;
    return {.data = is_new ? open_.next(group) : open_.begun(group),
            .shape = &shared_->open_shapes()[static_cast<std::size_t>(group)]};
  }
  return {.data = shared_->pools().of(group).data(entry.block), .shape = &shared_->shape(group)};
}

void BlockAccess::Commit() {
  // All groups' last blocks hold the same tokens.
  const auto entries = tables_->table(0).entries();
  if (!entries.empty() && entries.back().tokens < tables_->block_size() &&
      entries.back().logical >= first_logical_)
    open_.Turn();
  first_logical_ = tables_->logical_length();
}

void BlockAccess::Write(std::int64_t group, const float* k, const float* v) {
  const auto entries = tables_->table(group).entries();
  std::size_t first = entries.size();
  while (first > 0 && entries[first - 1].logical + entries[first - 1].tokens > first_logical_)
    --first;
  ParallelFor(static_cast<std::int64_t>(entries.size() - first), [&](std::int64_t i) {
    WriteEntry(group, entries[first + static_cast<std::size_t>(i)], k, v);
  });
}

// The step's part of one entry.
void BlockAccess::WriteEntry(std::int64_t group, const TableEntry& entry, const float* k,
                             const float* v) {
  const std::int64_t slot = std::max<std::int64_t>(0, first_logical_ - entry.logical);
  const std::int64_t tokens = entry.tokens - slot;
  const std::int64_t row = entry.logical + slot - first_logical_;
  BlockPlace place = Place(group, entry);
  // The rest of a block that was begun before joins what is there, and then the whole is coded.
  const bool seal = open_.exist() && slot > 0 && entry.tokens == tables_->block_size();
  if (seal) {
    place = {.data = open_.begun(group),
             .shape = &shared_->open_shapes()[static_cast<std::size_t>(group)]};
  }
  const BlockShape& shape = *place.shape;
  const CacheGroup& heads = shared_->group(group);
  const std::int64_t key_stride = shared_->layer_of(group).kv_heads * shape.key_dim;
  const std::int64_t value_stride = shared_->layer_of(group).kv_heads * shape.value_dim;
  k += row * key_stride + heads.first_kv_head * shape.key_dim;
  v += row * value_stride + heads.first_kv_head * shape.value_dim;
  for (std::int64_t head = 0; head < shape.kv_heads; ++head) {
    CodecFor(shape.key_type)
        .WriteKeys(place.data + shape.key_offset(head), shape.block_size, shape.key_dim, slot,
                   tokens, k + head * shape.key_dim, key_stride);
    CodecFor(shape.value_type)
        .WriteValues(place.data + shape.value_offset(head), shape.block_size, shape.value_dim, slot,
                     tokens, v + head * shape.value_dim, value_stride);
  }
  if (seal) Seal(group, entry);
}

// Codes the group's begun block, now full, into the entry's block of the pool.
void BlockAccess::Seal(std::int64_t group, const TableEntry& entry) {
  const BlockShape& open = shared_->open_shapes()[static_cast<std::size_t>(group)];
  const BlockShape& shape = shared_->shape(group);
  const std::byte* from = open_.begun(group);
  std::byte* to = shared_->pools().of(group).data(entry.block);
  for (std::int64_t head = 0; head < shape.kv_heads; ++head) {
    CodecFor(shape.key_type)
        .RewriteKeys(to + shape.key_offset(head), shape.block_size, shape.key_dim,
                     reinterpret_cast<const float*>(from + open.key_offset(head)));
    CodecFor(shape.value_type)
        .WriteValues(
            to + shape.value_offset(head), shape.block_size, shape.value_dim, 0, shape.block_size,
            reinterpret_cast<const float*>(from + open.value_offset(head)), shape.value_dim);
  }
}

BlockPlace GroupReader::Place(std::int64_t entry) const {
  const auto entries = tables_->table(group_).entries();
  return blocks_->Place(group_, entries[static_cast<std::size_t>(entry)]);
}

void GroupReader::ReadKeys(std::int64_t entry, std::int64_t head, float* to) const {
  const BlockPlace place = Place(entry);
  CodecFor(place.shape->key_type)
      .ReadKeys(place.data + place.shape->key_offset(head), place.shape->block_size,
                place.shape->key_dim, to);
}

void GroupReader::ReadValues(std::int64_t entry, std::int64_t head, float* to) const {
  const BlockPlace place = Place(entry);
  CodecFor(place.shape->value_type)
      .ReadValues(place.data + place.shape->value_offset(head), place.shape->block_size,
                  place.shape->value_dim, to);
}

}  // namespace carousel
