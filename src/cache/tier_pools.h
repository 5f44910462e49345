// SPDX-License-Identifier: Apache-2.0
// What all sequences' second tiers share: the memory or the file that evicted blocks lie in, and
// the limits on it.
#pragma once

#include <cstdint>
#include <memory>
#include <string>
#include <vector>

#include "cache/block_pool.h"
#include "cache/block_shape.h"
#include "cache/holdings.h"
#include "cache/slab_source.h"

namespace carousel {

struct RecallLane {
  BlockShape shape;  // of stored blocks; kv_heads is 1
  std::int64_t sketch_depth = 0;
  friend bool operator==(const RecallLane&, const RecallLane&) = default;
};

struct RecallStoreOptions {
  std::vector<RecallLane> lanes;  // of each sequence
  std::string file;               // empty: the heap
  std::int64_t limit_bytes = 0;   // of codes and sketches of all sequences together; 0: none
  std::int64_t limit_blocks = 0;  // of each lane of a sequence; 0: none
  friend bool operator==(const RecallStoreOptions&, const RecallStoreOptions&) = default;
};

class TierPools {
 public:
  // Throws carousel::Error when the limit is below one block in each lane ("recall_limit") or the
  // file cannot be made ("recall_store").
  explicit TierPools(const RecallStoreOptions& options);

  const std::vector<RecallLane>& lanes() const { return lanes_; }
  // For blocks of one of the lanes' shapes.
  BlockPool* PoolOf(const BlockShape& shape);
  // How many blocks in each lane the limits leave to a sequence that is promised `capacity` of
  // them.
  std::int64_t MostOf(std::int64_t capacity) const;
  // What one block costs in each lane, over all lanes: the least that a limit can be.
  std::int64_t bytes_per_round() const { return bytes_per_round_; }

  // Takes memory for at least one more block in every lane of a sequence that was promised
  // `capacity` of them, which the limits leave to it, and returns how many it is promised now.
  // Throws what the source does; what has been taken by then waits for the next time.
  std::int64_t Grow(std::int64_t capacity);
  // The sequence needs its promise no more.
  void Return(std::int64_t capacity) { promised_ -= capacity; }

  // CHECKs that what is promised is there.
  void CheckIntegrity() const;
  // And that it is what all sequences together hold and were promised.
  void CheckIntegrity(const Holdings& holdings) const;

 private:
  struct Pool {
    std::unique_ptr<BlockPool> blocks;
    std::int64_t lanes = 0;  // of a sequence, that share it
  };

  std::vector<RecallLane> lanes_;
  std::unique_ptr<SlabSource> slabs_;
  ByteBudget budget_;
  std::vector<Pool> pools_;  // one for each shape
  std::int64_t bytes_per_round_ = 0;
  std::int64_t most_blocks_ = 0;  // in a lane of a sequence; 0: no limit
  std::int64_t most_rounds_ = 0;  // of all sequences; 0: no limit
  std::int64_t promised_ = 0;     // blocks in each lane, of all sequences together
};

// Bytes of a tile of sketches of so many numbers each (recall_store.h).
std::size_t SketchTileBytes(std::int64_t depth);

}  // namespace carousel
