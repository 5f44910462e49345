// SPDX-License-Identifier: Apache-2.0
#include "cache/recall_store.h"

#include <fmt/format.h>

#include <algorithm>
#include <cstring>
#include <optional>

#include "base/check.h"
#include "cache/block_codec.h"
#include "carousel/error.h"

namespace carousel {
namespace {

std::size_t TileBytes(std::int64_t depth) {
  return KeyPlaneBytes(SketchTiles::kType, SketchTiles::kColumns, depth);
}

// A head of a block to head `to_head` of a block at `to`; from one type of codes to another through
// floats.
void CopyHead(const BlockHead& from, const BlockShape& shape, std::int64_t to_head, std::byte* to) {
  const BlockShape& old = *from.shape;
  const std::int64_t block_size = shape.block_size;
  const std::byte* keys = from.data + old.key_offset(from.head);
  const std::byte* values = from.data + old.value_offset(from.head);
  std::byte* new_keys = to + shape.key_offset(to_head);
  std::byte* new_values = to + shape.value_offset(to_head);
  thread_local AlignedBuffer<float> floats;
  floats.Reserve(static_cast<std::size_t>(block_size * std::max(shape.key_dim, shape.value_dim)));
  if (old.key_type == shape.key_type) {
    std::memcpy(new_keys, keys, shape.key_plane_bytes());
  } else {
    CodecFor(old.key_type).ReadKeys(keys, block_size, shape.key_dim, floats.data());
    CodecFor(shape.key_type).RewriteKeys(new_keys, block_size, shape.key_dim, floats.data());
  }
  if (old.value_type == shape.value_type) {
    std::memcpy(new_values, values, shape.value_plane_bytes());
  } else {
    CodecFor(old.value_type).ReadValues(values, block_size, shape.value_dim, floats.data());
    CodecFor(shape.value_type)
        .WriteValues(new_values, block_size, shape.value_dim, 0, block_size, floats.data(),
                     shape.value_dim);
  }
}

}  // namespace

RecallStore::RecallStore(const RecallStoreOptions& options)
    : budget_(0), most_blocks_(options.limit_blocks) {
  for (const RecallLane& spec : options.lanes) {
    CAROUSEL_CHECK_EQ(spec.shape.kv_heads, 1);
    bytes_per_round_ +=
        static_cast<std::int64_t>(spec.shape.bytes()) +
        static_cast<std::int64_t>(TileBytes(spec.sketch_depth)) / SketchTiles::kColumns;
  }
  if (options.limit_bytes > 0) {
    const std::int64_t blocks = options.limit_bytes / std::max<std::int64_t>(1, bytes_per_round_);
    if (blocks == 0) {
      throw Error(ErrorCode::kInvalidArgument, "recall_limit",
                  fmt::format("{} bytes are too few for one block in each layer and KV head; the "
                              "least is {}",
                              options.limit_bytes, bytes_per_round_));
    }
    most_blocks_ = most_blocks_ == 0 ? blocks : std::min(most_blocks_, blocks);
  }
  if (options.file.empty()) {
    slabs_ = std::make_unique<HeapSlabs>();
  } else {
    slabs_ = std::make_unique<FileSlabs>(options.file);
  }
  lanes_.reserve(options.lanes.size());
  for (const RecallLane& spec : options.lanes) {
    const auto same = std::find_if(pools_.begin(), pools_.end(),
                                   [&](const auto& pool) { return pool->shape() == spec.shape; });
    if (same != pools_.end()) {
      lanes_.push_back({.spec = spec, .pool = same->get()});
      continue;
    }
    pools_.push_back(std::make_unique<BlockPool>(spec.shape, &budget_, slabs_.get()));
    lanes_.push_back({.spec = spec, .pool = pools_.back().get()});
  }
}

RecallStore::~RecallStore() = default;

const std::byte* RecallStore::data(std::int64_t lane, std::int64_t slot) const {
  const StoredBlock& block = at(lane).slots[static_cast<std::size_t>(slot)];
  CAROUSEL_CHECK(block.present());
  return std::as_const(*at(lane).pool).data(block.record);
}

namespace {

// Where in `in_order` a block of this logical position is or belongs.
auto PlaceOf(const std::vector<std::int64_t>& in_order, std::span<const StoredBlock> slots,
             Position logical) {
  return std::lower_bound(in_order.begin(), in_order.end(), logical,
                          [&](std::int64_t slot, Position position) {
                            return slots[static_cast<std::size_t>(slot)].logical < position;
                          });
}

}  // namespace

std::int64_t RecallStore::Find(std::int64_t lane, Position logical) const {
  const auto slots = this->slots(lane);
  const std::vector<std::int64_t>& order = at(lane).in_order;
  const auto place = PlaceOf(order, slots, logical);
  const bool found =
      place != order.end() && slots[static_cast<std::size_t>(*place)].logical == logical;
  return found ? *place : -1;
}

void RecallStore::Read(std::int64_t lane, std::int64_t slot, const BlockShape& shape,
                       std::int64_t head, std::byte* to) const {
  CopyHead({.data = data(lane, slot), .shape = &at(lane).spec.shape, .head = 0}, shape, head, to);
}

// A slot without a block, and a tile for its sketch.
std::int64_t RecallStore::FreeSlot(Lane* lane) {
  if (!lane->free_slots.empty()) return lane->free_slots.back();
  const auto slot = static_cast<std::int64_t>(lane->slots.size());
  if (slot % SketchTiles::kColumns == 0 &&
      static_cast<std::int64_t>(lane->tiles.size()) * SketchTiles::kColumns <= slot) {
    const std::size_t bytes = TileBytes(lane->spec.sketch_depth);
    lane->tiles.emplace_back(bytes);
    std::memset(lane->tiles.back().data(), 0, bytes);
  }
  // So that what comes after the slot allocates nothing: neither Remove nor Add's last steps.
  lane->free_slots.reserve(lane->slots.size() + 1);
  lane->in_order.reserve(lane->slots.size() + 1);
  lane->slots.emplace_back();
  lane->free_slots.push_back(slot);
  return slot;
}

void RecallStore::Add(std::int64_t lane_index, Position written, Position logical,
                      const BlockHead& block, std::span<const float> sketch) {
  Lane& lane = lanes_[static_cast<std::size_t>(lane_index)];
  const std::int64_t depth = lane.spec.sketch_depth;
  CAROUSEL_CHECK_EQ(static_cast<std::int64_t>(sketch.size()), depth);
  if (most_blocks_ > 0 && blocks(lane_index) == most_blocks_) {
    ++lane.dropped_blocks;
    const std::int64_t oldest = lane.in_order.front();
    if (logical < lane.slots[static_cast<std::size_t>(oldest)].logical) return;
    Remove(lane_index, oldest);
  }
  const std::int64_t slot = FreeSlot(&lane);
  const std::optional<BlockId> record = lane.pool->Allocate();
  CAROUSEL_CHECK(record.has_value());  // the budget has no limit
  CopyHead(block, lane.spec.shape, 0, lane.pool->data(*record));
  CodecFor(SketchTiles::kType)
      .WriteKeys(lane.tiles[static_cast<std::size_t>(slot / SketchTiles::kColumns)].data(),
                 SketchTiles::kColumns, depth, slot % SketchTiles::kColumns, 1, sketch.data(),
                 depth);
  lane.in_order.insert(PlaceOf(lane.in_order, lane.slots, logical), slot);
  lane.free_slots.pop_back();
  lane.slots[static_cast<std::size_t>(slot)] = {
      .record = *record, .written = written, .logical = logical};
}

void RecallStore::Remove(std::int64_t lane_index, std::int64_t slot) {
  Lane& lane = lanes_[static_cast<std::size_t>(lane_index)];
  StoredBlock& block = lane.slots[static_cast<std::size_t>(slot)];
  CAROUSEL_CHECK(block.present());
  lane.in_order.erase(PlaceOf(lane.in_order, lane.slots, block.logical));
  lane.pool->Free(block.record);
  block = {};
  lane.free_slots.push_back(slot);
}

void RecallStore::Clear() {
  for (std::int64_t lane = 0; lane < lanes(); ++lane) {
    for (std::size_t slot = 0; slot < at(lane).slots.size(); ++slot) {
      if (at(lane).slots[slot].present()) Remove(lane, static_cast<std::int64_t>(slot));
    }
  }
}

std::int64_t RecallStore::stored_tokens() const {
  std::int64_t most = 0;
  for (const Lane& lane : lanes_)
    most = std::max(most, std::ssize(lane.in_order) * lane.spec.shape.block_size);
  return most;
}

std::int64_t RecallStore::dropped_tokens() const {
  std::int64_t most = 0;
  for (const Lane& lane : lanes_) {
    most = std::max(most, lane.dropped_blocks * lane.spec.shape.block_size);
  }
  return most;
}

std::int64_t RecallStore::bytes() const {
  std::size_t bytes = 0;
  for (const Lane& lane : lanes_) {
    bytes += lane.in_order.size() * lane.spec.shape.bytes();
    for (const auto& tile : lane.tiles) bytes += tile.size();
  }
  return static_cast<std::int64_t>(bytes);
}

}  // namespace carousel
