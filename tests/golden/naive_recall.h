// SPDX-License-Identifier: Apache-2.0
// Recall by definition: every evicted block is weighed by its keys, and those that would get most
// attention stand among what is kept.
#pragma once

#include <cstdint>
#include <map>
#include <vector>

#include "attention/reference.h"
#include "carousel/engine.h"
#include "carousel/model.h"
#include "rope/rope_spec.h"

namespace carousel::testing {

// Attention mass by block of the stream, logical / block_size.
using MassByBlock = std::map<std::int64_t, double>;

// One KV head of a layer.
struct NaiveHead {
  AttentionLayerSpec spec;
  LayerRope rope;
  std::vector<ReferenceToken> kept;     // in stream order, the queries' own tokens among them
  std::vector<ReferenceToken> evicted;  // likewise
};

struct NaiveRecalled {
  ReferenceOutput output;          // its mass: [queries, kept]
  std::vector<MassByBlock> given;  // [queries], to recalled blocks
};

// `queries` of a step over what the head keeps and recalls; `mode`, kKeep or kCompact, says where
// tokens stand.
NaiveRecalled AttendWithRecall(const EngineConfig& config, PositionPolicy mode,
                               const NaiveHead& head, const std::vector<ReferenceQuery>& queries);

}  // namespace carousel::testing
