// SPDX-License-Identifier: Apache-2.0
// How a cache of a given size is split between layers and between the KV heads of a layer.
#pragma once

#include <cstdint>
#include <span>
#include <vector>

#include "carousel/eviction_config.h"

namespace carousel {

// What each layer's heads may hold, in tokens, [layers]; whole blocks, and together exactly
// layers * max_cache_size. Uniform and adaptive: the same for all. Pyramid (Cai et al. 2024,
// "PyramidKV"): evictable areas fall evenly from the first layer to the last, which has
// 1 / budget_slope of the mean, and at least a block.
std::vector<std::int64_t> LayerSizes(const EvictionConfig& eviction, std::int64_t layers,
                                     std::int64_t block_size);

// The most that one head can come to hold when `heads` of them share a layer's size.
std::int64_t LargestHeadSize(const EvictionConfig& eviction, std::int64_t layer_size,
                             std::int64_t heads, std::int64_t block_size);

// The candidates of one KV head of a layer.
struct HeadCandidates {
  std::vector<double> scores;
  std::vector<std::int64_t> logical;  // of each: of equal scores the older goes
};

// Of `losses` blocks that a layer must lose, how many each head does. Feng et al. 2024, "Ada-KV":
// the lowest scores of all heads together go, but each head keeps `floor` times its even share of
// what stays. [heads]; together `losses`, or all candidates where there are fewer.
std::vector<std::int64_t> AdaptiveLosses(std::span<const HeadCandidates> heads, std::int64_t losses,
                                         double floor);

}  // namespace carousel
