// SPDX-License-Identifier: Apache-2.0
#include "cache/recall_store.h"

#include <fmt/format.h>

#include <algorithm>
#include <cstring>
#include <new>
#include <optional>
#include <set>
#include <utility>

#include "base/check.h"
#include "cache/block_codec.h"
#include "carousel/error.h"

namespace carousel {
namespace {

// Short enough for a string that allocates nothing.
constexpr std::string_view kNoMemory = "out of memory";

// How many floats a head's keys or values are.
std::size_t FloatsOf(const BlockShape& shape) {
  return static_cast<std::size_t>(shape.block_size * std::max(shape.key_dim, shape.value_dim));
}

// A head of a block to head `to_head` of a block at `to`; from one type of codes to another through
// `floats`, [FloatsOf].
void CopyHead(const BlockHead& from, const BlockShape& shape, std::int64_t to_head, std::byte* to,
              float* floats) {
  const BlockShape& old = *from.shape;
  const std::int64_t block_size = shape.block_size;
  const std::byte* keys = from.data + old.key_offset(from.head);
  const std::byte* values = from.data + old.value_offset(from.head);
  std::byte* new_keys = to + shape.key_offset(to_head);
  std::byte* new_values = to + shape.value_offset(to_head);
  if (old.key_type == shape.key_type) {
    std::memcpy(new_keys, keys, shape.key_plane_bytes());
  } else {
    CodecFor(old.key_type).ReadKeys(keys, block_size, shape.key_dim, floats);
    CodecFor(shape.key_type).RewriteKeys(new_keys, block_size, shape.key_dim, floats);
  }
  if (old.value_type == shape.value_type) {
    std::memcpy(new_values, values, shape.value_plane_bytes());
  } else {
    CodecFor(old.value_type).ReadValues(values, block_size, shape.value_dim, floats);
    CodecFor(shape.value_type)
        .WriteValues(new_values, block_size, shape.value_dim, 0, block_size, floats,
                     shape.value_dim);
  }
}

}  // namespace

RecallStore::RecallStore(TierPools* pools) : pools_(pools) {
  lanes_.reserve(pools->lanes().size());
  for (const RecallLane& spec : pools->lanes()) AddLane(spec);
}

RecallStore::RecallStore(std::unique_ptr<TierPools> own) : RecallStore(own.get()) {
  own_pools_ = std::move(own);
}

RecallStore::RecallStore(const RecallStoreOptions& options)
    : RecallStore(std::make_unique<TierPools>(options)) {}

void RecallStore::AddLane(const RecallLane& spec) {
  lanes_.push_back({.spec = spec, .pool = pools_->PoolOf(spec.shape)});
  floats_.Reserve(FloatsOf(spec.shape));
}

RecallStore::~RecallStore() {
  Clear();
  pools_->Return(promised_);
}

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
                       std::int64_t head, std::byte* to) {
  CopyHead({.data = data(lane, slot), .shape = &at(lane).spec.shape, .head = 0}, shape, head, to,
           floats_.data());
}

namespace {

// Room for `count` elements, and for twice as many as before, so that growing costs little.
template <typename T>
void ReserveFor(std::int64_t count, std::vector<T>* vector) {
  const auto wanted = static_cast<std::size_t>(count);
  if (wanted > vector->capacity()) vector->reserve(std::max(wanted, 2 * vector->capacity()));
}

}  // namespace

void RecallStore::CopyFrom(const RecallStore& from) {
  CAROUSEL_CHECK(pools_ == from.pools_);
  std::int64_t most = 0;
  for (const Lane& lane : from.lanes_) most = std::max(most, std::ssize(lane.slots));
  while (capacity_ < most) {
    if (capacity_ >= pools_->MostOf(promised_)) {
      throw Error(ErrorCode::kOutOfMemory, "recall_limit",
                  fmt::format("{} bytes have no room for the {} stored blocks of another sequence; "
                              "raise the limit",
                              from.bytes(), most));
    }
    Grow();
  }
  for (std::size_t i = 0; i < lanes_.size(); ++i) {
    Lane& to = lanes_[i];
    const Lane& other = from.lanes_[i];
    // There is room for all of it.
    to.slots = other.slots;
    to.free_slots = other.free_slots;
    to.in_order = other.in_order;
    to.dropped_blocks = other.dropped_blocks;
    const auto tiles = (to.slots.size() + SketchTiles::kColumns - 1) / SketchTiles::kColumns;
    for (std::size_t tile = 0; tile < tiles; ++tile)
      std::memcpy(to.tiles[tile].data(), other.tiles[tile].data(), other.tiles[tile].size());
    for (const std::int64_t slot : to.in_order)
      to.pool->Share(to.slots[static_cast<std::size_t>(slot)].record);
  }
}

// Takes all memory that one more block in every lane needs, or more. What is taken before something
// throws waits for the next time.
void RecallStore::Grow() {
  promised_ = pools_->Grow(promised_);
  const std::int64_t capacity = promised_;
  for (Lane& lane : lanes_) {
    ReserveFor(capacity, &lane.slots);
    ReserveFor(capacity, &lane.free_slots);
    ReserveFor(capacity, &lane.in_order);
    const std::size_t bytes = SketchTileBytes(lane.spec.sketch_depth);
    while (std::ssize(lane.tiles) * SketchTiles::kColumns < capacity) {
      lane.tiles.emplace_back(bytes);
      std::memset(lane.tiles.back().data(), 0, bytes);
    }
  }
  capacity_ = capacity;
}

// Whether there is room for another block in every lane now. Space may come back, but asking costs:
// it is asked for again when every lane has dropped as many blocks as it holds.
bool RecallStore::TryGrow() noexcept {
  constexpr std::int64_t kFewestDrops = 8;
  if (capacity_ >= pools_->MostOf(promised_)) return false;
  if (drops_until_retry_ > 0) return false;
  try {
    Grow();
    return true;
  } catch (const Error& error) {
    NoteRefusal(error.problem());
  } catch (const std::bad_alloc&) {
    NoteRefusal(kNoMemory);
  }
  drops_until_retry_ = lanes() * std::max(capacity_, kFewestDrops);
  return false;
}

void RecallStore::NoteRefusal(std::string_view reason) noexcept {
  ++refused_growths_;
  try {
    limited_by_ = reason;
  } catch (const std::bad_alloc&) {
    limited_by_ = kNoMemory;
  }
}

void RecallStore::CountDropped(Lane* lane) {
  ++lane->dropped_blocks;
  if (drops_until_retry_ > 0) --drops_until_retry_;
}

// Room for a block of this logical position in each of the lanes. False: it is the one that is
// dropped.
bool RecallStore::MakeRoom(std::span<Lane> lanes, Position logical) noexcept {
  const auto is_full = [&](const Lane& lane) { return std::ssize(lane.in_order) == capacity_; };
  if (std::none_of(lanes.begin(), lanes.end(), is_full) || TryGrow()) return true;
  const bool is_oldest = std::any_of(lanes.begin(), lanes.end(), [&](const Lane& lane) {
    return is_full(lane) &&
           (capacity_ == 0 ||
            logical < lane.slots[static_cast<std::size_t>(lane.in_order.front())].logical);
  });
  for (Lane& lane : lanes) {
    if (!is_oldest && !is_full(lane)) continue;
    CountDropped(&lane);
    if (!is_oldest) RemoveFrom(&lane, lane.in_order.front());
  }
  return !is_oldest;
}

// Into a lane that has room: nothing here allocates.
void RecallStore::Put(Lane* lane, Position written, Position logical, const BlockHead& block,
                      std::span<const float> sketch) {
  if (lane->free_slots.empty()) {
    lane->free_slots.push_back(std::ssize(lane->slots));
    lane->slots.emplace_back();
  }
  const std::int64_t slot = lane->free_slots.back();
  const std::optional<BlockId> record = lane->pool->Allocate();
  CAROUSEL_CHECK(record.has_value());
  CopyHead(block, lane->spec.shape, 0, lane->pool->data(*record), floats_.data());
  CodecFor(SketchTiles::kType)
      .WriteKeys(lane->tiles[static_cast<std::size_t>(slot / SketchTiles::kColumns)].data(),
                 SketchTiles::kColumns, lane->spec.sketch_depth, slot % SketchTiles::kColumns, 1,
                 sketch.data(), lane->spec.sketch_depth);
  lane->in_order.insert(PlaceOf(lane->in_order, lane->slots, logical), slot);
  lane->free_slots.pop_back();
  lane->slots[static_cast<std::size_t>(slot)] = {
      .record = *record, .written = written, .logical = logical};
}

void RecallStore::Add(std::int64_t first_lane, Position written, Position logical,
                      const BlockHead& block, std::span<const float> sketches) noexcept {
  const auto depth = static_cast<std::size_t>(at(first_lane).spec.sketch_depth);
  CAROUSEL_CHECK_EQ(sketches.size() % depth, std::size_t{0});
  const auto lanes =
      std::span(lanes_).subspan(static_cast<std::size_t>(first_lane), sketches.size() / depth);
  if (!MakeRoom(lanes, logical)) return;
  BlockHead head = block;
  for (Lane& lane : lanes) {
    CAROUSEL_CHECK_EQ(lane.spec.sketch_depth, static_cast<std::int64_t>(depth));
    Put(&lane, written, logical, head, sketches.first(depth));
    sketches = sketches.subspan(depth);
    ++head.head;
  }
}

void RecallStore::Refuse(std::int64_t first_lane, std::int64_t lanes) noexcept {
  NoteRefusal(kNoMemory);
  for (std::int64_t lane = first_lane; lane < first_lane + lanes; ++lane)
    CountDropped(&lanes_[static_cast<std::size_t>(lane)]);
}

void RecallStore::Remove(std::int64_t lane, std::int64_t slot) {
  RemoveFrom(&lanes_[static_cast<std::size_t>(lane)], slot);
}

void RecallStore::RemoveFrom(Lane* lane, std::int64_t slot) {
  StoredBlock& block = lane->slots[static_cast<std::size_t>(slot)];
  CAROUSEL_CHECK(block.present());
  lane->in_order.erase(PlaceOf(lane->in_order, lane->slots, block.logical));
  lane->pool->Free(block.record);
  block = {};
  lane->free_slots.push_back(slot);
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

void RecallStore::AddTo(Holdings* holdings) const {
  holdings->AddPromise(*pools_, promised_);
  CAROUSEL_CHECK_LE(capacity_, promised_);
  for (const Lane& lane : lanes_) {
    CAROUSEL_CHECK_LE(std::ssize(lane.in_order), capacity_);
    CAROUSEL_CHECK_EQ(lane.in_order.size() + lane.free_slots.size(), lane.slots.size());
    for (std::size_t i = 0; i < lane.in_order.size(); ++i) {
      const StoredBlock& block = lane.slots[static_cast<std::size_t>(lane.in_order[i])];
      CAROUSEL_CHECK(block.present());
      if (i > 0) {
        const auto before = static_cast<std::size_t>(lane.in_order[i - 1]);
        CAROUSEL_CHECK_LT(lane.slots[before].logical.value, block.logical.value);
      }
      holdings->Add(*lane.pool, block.record);
    }
  }
}

void RecallStore::CheckIntegrity() const {
  pools_->CheckIntegrity();
  CAROUSEL_CHECK_LE(capacity_, promised_);
  std::set<std::pair<const BlockPool*, std::int32_t>> held;
  for (const Lane& lane : lanes_) {
    CAROUSEL_CHECK_LE(std::ssize(lane.in_order), capacity_);
    CAROUSEL_CHECK_EQ(lane.in_order.size() + lane.free_slots.size(), lane.slots.size());
    CAROUSEL_CHECK_GE(std::ssize(lane.tiles) * SketchTiles::kColumns, std::ssize(lane.slots));
    for (const std::int64_t slot : lane.in_order) {
      const BlockId record = lane.slots[static_cast<std::size_t>(slot)].record;
      CAROUSEL_CHECK(held.insert({lane.pool, record.value}).second);
    }
    for (const std::int64_t slot : lane.free_slots)
      CAROUSEL_CHECK(!lane.slots[static_cast<std::size_t>(slot)].present());
  }
  if (own_pools_ == nullptr) return;  // others hold blocks as well
  for (const Lane& lane : lanes_) {
    const auto of_pool = std::count_if(held.begin(), held.end(),
                                       [&](const auto& block) { return block.first == lane.pool; });
    CAROUSEL_CHECK_EQ(lane.pool->blocks_in_use(), of_pool);
  }
}

}  // namespace carousel
