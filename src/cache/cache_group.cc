// SPDX-License-Identifier: Apache-2.0
#include "cache/cache_group.h"

namespace carousel {

std::vector<CacheGroup> MakeCacheGroups(std::span<const AttentionLayerSpec> layers,
                                        Grouping grouping) {
  std::vector<CacheGroup> groups;
  for (std::size_t layer = 0; layer < layers.size(); ++layer) {
    const std::int64_t kv_heads = layers[layer].kv_heads;
    const std::int64_t together = grouping == Grouping::kHead ? 1 : kv_heads;
    for (std::int64_t head = 0; head < kv_heads; head += together) {
      groups.push_back(
          {.layer = static_cast<std::int64_t>(layer), .first_kv_head = head, .kv_heads = together});
    }
  }
  return groups;
}

}  // namespace carousel
