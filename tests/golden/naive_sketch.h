// SPDX-License-Identifier: Apache-2.0
// Sketches by definition (attention/recall_sketch.h), in double and from the tokens themselves:
// which stored blocks are worth a look at their keys.
#pragma once

#include <cstdint>
#include <vector>

#include "attention/reference.h"
#include "carousel/model.h"
#include "rope/rope_spec.h"

namespace carousel::testing {

// Blocks that sketches name, in no order.
struct NaiveCandidates {
  static constexpr std::size_t kMostOthers = 8;

  std::vector<std::int64_t> blocks;
  // What the engine, whose numbers are rounded otherwise, may have named instead. Whoever asks sees
  // whether that matters.
  std::vector<std::vector<std::int64_t>> others;
};

struct NaiveSweep {
  const AttentionLayerSpec* spec = nullptr;  // of one KV head
  const LayerRope* rope = nullptr;
  std::int64_t block_size = 0;
  // Stored tokens, whole blocks in stream order, and queries; all where they would stand.
  const std::vector<ReferenceToken>* tokens = nullptr;
  const std::vector<ReferenceQuery>* queries = nullptr;
};

// The `wanted` blocks, logical / block_size, that get most mass by their sketches; there are more.
NaiveCandidates CandidatesBySketch(const NaiveSweep& sweep, std::int64_t wanted);

}  // namespace carousel::testing
