// SPDX-License-Identifier: Apache-2.0
// Some of a list: those that have most.
#pragma once

#include <cstdint>
#include <span>
#include <vector>

namespace carousel {

// The `count` of `slots` that have most mass, in the order in which they are given; of equal ones
// those given first. No mass, [all slots], is negative; `count` is at most as many as the slots.
// `ranked` is scratch.
void KeepLargest(std::span<const std::int64_t> slots, std::span<const float> mass,
                 std::int64_t count, std::vector<std::int32_t>* ranked,
                 std::vector<std::int64_t>* kept);

}  // namespace carousel
