// SPDX-License-Identifier: Apache-2.0
// Attention of one layer over a block table: the kernel that every token passes through.
//
// For each query head: out = softmax(scale * R(s) q . K + bias) V over the visible tokens, with s
// the shift of each block (docs/architecture.md: query rotation), and the attention mass that each
// token received, which is what eviction decides by. Scores of a tile of queries are kept, so the
// mass costs no second read of keys.
#pragma once

#include <cstdint>
#include <memory>
#include <span>

#include "cache/block_shape.h"
#include "carousel/model.h"
#include "carousel/types.h"
#include "rope/rotation_table.h"

namespace carousel {

// A block as attention sees it.
struct AttentionBlock {
  const std::byte* data = nullptr;
  const BlockShape* shape = nullptr;  // how data lies; block sizes and dims are the same for all
  std::int64_t first_head = 0;        // which of its KV heads is the task's first
  std::int64_t tokens = 0;            // filled slots, from the first on
  std::int64_t shift_blocks = 0;      // s / block_size; 0 where nothing rotates
  Position attention;                 // v of the first token
  Position logical;                   // of the first token
};

// Attention of some of a layer's KV heads, and of the query heads that read them, for one step of
// one sequence. The step's own keys and values are in the blocks.
struct AttentionInput {
  const AttentionLayerSpec* layer = nullptr;
  std::int64_t first_kv_head = 0;  // of the layer; q and out have columns for all of its heads
  std::int64_t kv_heads = 0;       // how many, > 0; each block holds as many from first_head on
  std::int64_t block_size = 0;
  const RotationTable* rotation =
      nullptr;                             // extended far enough; may be null when all shifts are 0
  std::span<const AttentionBlock> blocks;  // in stream order; all but the last are full
  std::int64_t queries = 0;
  Position
      first_query_attention;  // v of query 0; query i is i tokens further, here and in the stream
  Position first_query_logical;
  const float* q =
      nullptr;  // [queries, H * key_dim], rotated by the model to its written positions
  std::int64_t counted_queries = 0;  // the last so many add to the mass
};

struct AttentionOutput {
  float* out = nullptr;  // [queries, H * value_dim]; null: only the mass is wanted
  // [blocks * block_size]: softmax probability summed over the task's heads and the counted
  // queries; a slot that
  // is not filled gets 0. Empty when counted_queries is 0.
  std::span<float> token_mass;
};

// Tasks of one call share its threads and nothing else: KV heads that keep different blocks,
// sequences of different lengths.
struct AttentionTask {
  AttentionInput input;
  AttentionOutput output;
};

struct AttentionScratch;

// Owns the scratch memory, which only grows: no allocation per step once the sizes have been seen.
class PagedAttention {
 public:
  // Throws carousel::Error when CAROUSEL_FORCE_TARGET (base/cpu_target.h) names what the CPU lacks.
  PagedAttention();
  ~PagedAttention();
  PagedAttention(PagedAttention&&) noexcept;
  PagedAttention& operator=(PagedAttention&&) noexcept;

  // Runs all tasks side by side on all cores; none writes what another reads or writes. One call
  // at a time. Throws std::bad_alloc when scratch cannot grow.
  void Run(std::span<const AttentionTask> tasks);
  void Run(const AttentionTask& task) { Run({&task, 1}); }

 private:
  std::unique_ptr<AttentionScratch> scratch_;
};

}  // namespace carousel
