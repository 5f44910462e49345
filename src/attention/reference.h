// SPDX-License-Identifier: Apache-2.0
// The judge: dense attention in double over the tokens that survived, without blocks, shifts or
// tiles.
#pragma once

#include <cstdint>
#include <vector>

#include "carousel/model.h"
#include "carousel/types.h"
#include "rope/rope_spec.h"

namespace carousel {

// A kept token: what the model wrote and where it stands.
struct ReferenceToken {
  Position written;    // a
  Position attention;  // v
  Position logical;
  std::vector<double> key;    // [Hkv * key_dim], R(a) k
  std::vector<double> value;  // [Hkv * value_dim]
};

struct ReferenceQuery {
  Position written;  // b
  Position attention;
  Position logical;
  std::vector<double> query;  // [H * key_dim], R(b) q
};

struct ReferenceOutput {
  std::vector<double> out;   // [queries, H * value_dim]
  std::vector<double> mass;  // [queries, tokens], summed over heads
  // As out, of the values' magnitudes: what rounding takes a part of.
  std::vector<double> magnitude;
};

// Takes every rotation back (R(-a), R(-b)), then turns query and key to the positions where they
// stand. Queries see tokens of the same or a smaller logical position.
ReferenceOutput ReferenceAttention(const AttentionLayerSpec& layer, const LayerRope& rope,
                                   const std::vector<ReferenceToken>& tokens,
                                   const std::vector<ReferenceQuery>& queries);

}  // namespace carousel
