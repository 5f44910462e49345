// SPDX-License-Identifier: Apache-2.0
#include "engine/key_rotation.h"

#include <cmath>
#include <span>
#include <vector>

#include "base/aligned_buffer.h"
#include "base/parallel.h"
#include "cache/block_codec.h"
#include "rope/rotate.h"

namespace carousel {
namespace {

// Sums of squares of keys before they are coded, and of what coding changes.
struct RewritingError {
  std::int64_t tokens = 0;
  double squares = 0.0;
  double error_squares = 0.0;

  void Add(std::span<const float> keys, std::span<const float> read) {
    for (std::size_t i = 0; i < keys.size(); ++i) {
      const double error = static_cast<double>(read[i]) - static_cast<double>(keys[i]);
      squares += static_cast<double>(keys[i]) * static_cast<double>(keys[i]);
      error_squares += error * error;
    }
  }
};

// Keys of one KV head: [key_dim, block_size] each.
struct KeyScratch {
  AlignedBuffer<float> rotated;  // of all KV heads of a block
  AlignedBuffer<float> read;     // of one
};

// Rewrites a block's keys, turned by R(delta * block_size).
void RewriteBlock(const BlockPlace& place, const RotationTable& rotation, std::int64_t delta,
                  bool is_full, KeyScratch* scratch, RewritingError* error) {
  const BlockShape& shape = *place.shape;
  const BlockCodec& codec = CodecFor(shape.key_type);
  const std::int64_t plane = shape.key_dim * shape.block_size;
  float* keys = scratch->rotated.data();
  for (std::int64_t head = 0; head < shape.kv_heads; ++head) {
    codec.ReadKeys(place.data + shape.key_offset(head), shape.block_size, shape.key_dim,
                   keys + head * plane);
  }
  RotateKeyBlocks(rotation, KeyLayout::kDimensionMajor, shape.kv_heads, shape.key_dim, {&keys, 1},
                  {.multiples = {&delta, 1}, .columns = 1});
  for (std::int64_t head = 0; head < shape.kv_heads; ++head) {
    std::byte* to = place.data + shape.key_offset(head);
    const float* rotated = keys + head * plane;
    codec.RewriteKeys(to, shape.block_size, shape.key_dim, rotated);
    if (shape.key_type == KvType::kF32 || !is_full) continue;
    codec.ReadKeys(to, shape.block_size, shape.key_dim, scratch->read.data());
    const auto count = static_cast<std::size_t>(plane);
    error->Add({rotated, count}, {scratch->read.data(), count});
  }
}

RewritingError RewriteGroup(std::int64_t group, SharedCache* shared, SequenceTables* tables,
                            BlockAccess* blocks) {
  RewritingError error;
  const RotationTable* rotation = shared->rotation(group);
  if (rotation == nullptr) {
    tables->KeysRotated(group);
    return error;
  }
  const std::int64_t block_size = tables->block_size();
  const BlockShape& shape = shared->shape(group);
  const auto plane = static_cast<std::size_t>(shape.key_dim * block_size);
  KeyScratch scratch{
      .rotated = AlignedBuffer<float>(static_cast<std::size_t>(shape.kv_heads) * plane),
      .read = AlignedBuffer<float>(plane)};
  const auto entries = tables->table(group).entries();
  for (std::size_t i = 0; i < entries.size(); ++i) {
    const std::int64_t delta = -tables->ShiftOf(group, static_cast<std::int64_t>(i)) / block_size;
    if (delta == 0) continue;
    RewriteBlock(blocks->Place(group, entries[i]), *rotation, delta,
                 entries[i].tokens == block_size, &scratch, &error);
    error.tokens += entries[i].tokens;
  }
  // At once, so that a group which fails for want of memory leaves the others' positions true.
  tables->KeysRotated(group);
  return error;
}

// Blocks that others hold as well are copied before they are rewritten.
void OwnWhatMoves(SharedCache* shared, SequenceTables* tables) {
  for (std::int64_t group = 0; group < tables->groups(); ++group) {
    if (shared->rotation(group) == nullptr) continue;
    const std::int64_t entries = std::ssize(tables->table(group).entries());
    for (std::int64_t entry = 0; entry < entries; ++entry) {
      if (tables->ShiftOf(group, entry) != 0)
        tables->MakeWritable(group, entry, shared->pools().of(group));
    }
  }
}

}  // namespace

std::int64_t KeyRotation::Apply(SharedCache* shared, SequenceTables* tables, BlockAccess* blocks) {
  OwnWhatMoves(shared, tables);
  std::vector<RewritingError> rewritten(static_cast<std::size_t>(tables->groups()));
  ParallelFor(tables->groups(), [&](std::int64_t group) {
    rewritten[static_cast<std::size_t>(group)] = RewriteGroup(group, shared, tables, blocks);
  });
  std::int64_t total = 0;
  for (const RewritingError& error : rewritten) {
    total += error.tokens;
    squares_ += error.squares;
    error_squares_ += error.error_squares;
  }
  return total;
}

double KeyRotation::requantisation_error() const {
  return squares_ > 0.0 ? std::sqrt(error_squares_ / squares_) : 0.0;
}

}  // namespace carousel
