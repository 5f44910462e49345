// SPDX-License-Identifier: Apache-2.0
// Which forgotten blocks would the present queries look at? An estimate for all of a lane's blocks
// in one sweep over their sketches (cache/recall_store.h), without reading a key.
//
// A block's keys are first turned back by where it was written, R(-a): its first token then stands
// at 0, wherever it came from, and one rotation of the query serves all blocks. Where tokens keep
// their positions, a query meets keys as they were written, so these are not turned. Of each
// channel the sketch then holds two numbers, which stand for the block's keys where the query's own
// channel is positive and where it is negative. With the largest and the smallest key there, the
// sum over channels would be Quest's upper bound (Tang et al. 2024) on what any key of the block
// scores, and with the mean twice, the mean score. The numbers lie between: kBound of the way from
// the mean to the bound, which chooses better than either (docs/decisions/0007-recall.md). A
// block's estimate is the exponential of that, as a share of the sum over the lane's blocks, for
// each query head by itself. The few best are then judged by their keys, beside what is resident.
#pragma once

#include <cstdint>
#include <optional>
#include <span>

#include "cache/recall_store.h"
#include "carousel/model.h"
#include "carousel/types.h"
#include "rope/rotation_table.h"

namespace carousel {

inline constexpr float kBound = 0.4F;

// Numbers in a sketch: of each channel what meets positive queries, then what meets negative ones.
constexpr std::int64_t SketchDepth(std::int64_t key_dim) { return 2 * key_dim; }

// The sketch of a full block, [SketchDepth]. `rotation` holds a row for `written`; null where keys
// are not to be turned back.
void SketchBlock(const BlockHead& block, const RotationTable* rotation, Position written,
                 std::span<float> sketch);

struct SketchSweep {
  const AttentionLayerSpec* layer = nullptr;
  std::int64_t kv_head = 0;
  const float* q = nullptr;  // [queries, H * key_dim], as the model rotated them
  std::int64_t queries = 0;
  const RotationTable* rotation = nullptr;  // null: nothing rotates
  // From the position that the model gave a query to its distance from a candidate, in blocks.
  std::int64_t shift_blocks = 0;
  // For ALiBi: of query 0 from the first token of any candidate; nullopt: from where each stands
  // in the stream, of which query 0 is at `first_query_logical`.
  std::optional<std::int64_t> distance = 0;
  Position first_query_logical;
  std::int64_t block_size = 0;
  SketchTiles sketches;
  std::span<const StoredBlock> slots;
};

// mass[slot] = the estimated share, summed over the KV head's query heads and the queries; free
// slots get 0. `mass` is [slots]. Thread-safe. Throws std::bad_alloc alone.
void EstimateMass(const SketchSweep& sweep, std::span<float> mass);
// Its slow twin, in double.
void EstimateMassReference(const SketchSweep& sweep, std::span<double> mass);

}  // namespace carousel
