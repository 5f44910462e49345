// SPDX-License-Identifier: Apache-2.0
// Cache groups (docs/architecture.md): which KV heads of which layer keep and lose their blocks
// together. Everything above the kernels counts groups, so eviction per layer and per head is one
// code.
#pragma once

#include <cstdint>
#include <span>
#include <vector>

#include "carousel/enums.h"
#include "carousel/model.h"

namespace carousel {

// KV heads [first_kv_head, first_kv_head + kv_heads) of a layer.
struct CacheGroup {
  std::int64_t layer = 0;
  std::int64_t first_kv_head = 0;
  std::int64_t kv_heads = 0;

  friend bool operator==(const CacheGroup&, const CacheGroup&) = default;
};

// All groups, by layer, and within a layer by head: together each KV head once.
std::vector<CacheGroup> MakeCacheGroups(std::span<const AttentionLayerSpec> layers,
                                        Grouping grouping);

}  // namespace carousel
