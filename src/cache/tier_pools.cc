// SPDX-License-Identifier: Apache-2.0
#include "cache/tier_pools.h"

#include <fmt/format.h>

#include <algorithm>
#include <limits>

#include "base/check.h"
#include "cache/plane_layout.h"
#include "cache/recall_store.h"
#include "carousel/error.h"

namespace carousel {

std::size_t SketchTileBytes(std::int64_t depth) {
  return KeyPlaneBytes(SketchTiles::kType, SketchTiles::kColumns, depth);
}

TierPools::TierPools(const RecallStoreOptions& options)
    : lanes_(options.lanes), budget_(0), most_blocks_(options.limit_blocks) {
  for (const RecallLane& spec : lanes_) {
    CAROUSEL_CHECK_EQ(spec.shape.kv_heads, 1);
    bytes_per_round_ +=
        static_cast<std::int64_t>(spec.shape.bytes()) +
        static_cast<std::int64_t>(SketchTileBytes(spec.sketch_depth)) / SketchTiles::kColumns;
  }
  if (options.limit_bytes > 0) {
    const std::int64_t blocks = options.limit_bytes / std::max<std::int64_t>(1, bytes_per_round_);
    if (blocks == 0) {
      throw Error(ErrorCode::kInvalidArgument, "recall_limit",
                  fmt::format("{} bytes are too few for one block in each layer and KV head; the "
                              "least is {}",
                              options.limit_bytes, bytes_per_round_));
    }
    most_rounds_ = blocks;
  }
  if (options.file.empty()) {
    slabs_ = std::make_unique<HeapSlabs>();
  } else {
    slabs_ = std::make_unique<FileSlabs>(options.file);
  }
  for (const RecallLane& spec : lanes_) {
    auto pool = std::find_if(pools_.begin(), pools_.end(),
                             [&](const Pool& each) { return each.blocks->shape() == spec.shape; });
    if (pool == pools_.end()) {
      pools_.push_back({std::make_unique<BlockPool>(spec.shape, &budget_, slabs_.get())});
      pool = std::prev(pools_.end());
    }
    ++pool->lanes;
  }
}

BlockPool* TierPools::PoolOf(const BlockShape& shape) {
  const auto pool = std::find_if(pools_.begin(), pools_.end(),
                                 [&](const Pool& each) { return each.blocks->shape() == shape; });
  CAROUSEL_CHECK(pool != pools_.end());
  return pool->blocks.get();
}

std::int64_t TierPools::MostOf(std::int64_t capacity) const {
  constexpr std::int64_t kNoLimit = std::numeric_limits<std::int64_t>::max();
  return std::min(most_blocks_ > 0 ? most_blocks_ : kNoLimit,
                  most_rounds_ > 0 ? most_rounds_ - (promised_ - capacity) : kNoLimit);
}

std::int64_t TierPools::Grow(std::int64_t capacity) {
  const std::int64_t others = promised_ - capacity;
  // Twice as many and no more, so that a sequence which begins does not take what others will need.
  std::int64_t grown = std::min(MostOf(capacity), std::max(capacity + 1, 2 * capacity));
  for (const Pool& pool : pools_) {
    pool.blocks->GrowTo(pool.lanes * (promised_ + 1));
    grown = std::min(grown, pool.blocks->blocks_reserved() / pool.lanes - others);
  }
  promised_ = others + grown;
  return grown;
}

void TierPools::CheckIntegrity() const {
  for (const Pool& pool : pools_)
    CAROUSEL_CHECK_GE(pool.blocks->blocks_reserved(), pool.lanes * promised_);
}

void TierPools::CheckIntegrity(const Holdings& holdings) const {
  CheckIntegrity();
  CAROUSEL_CHECK_EQ(holdings.PromisedBy(*this), promised_);
  for (const Pool& pool : pools_) pool.blocks->CheckIntegrity(holdings.HoldersOf(*pool.blocks));
}

}  // namespace carousel
