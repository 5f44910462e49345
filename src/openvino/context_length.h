// SPDX-License-Identifier: Apache-2.0
// How long a context the graph is told of, where it asks.
#pragma once

#include <cstdint>
#include <span>

namespace carousel {

// One more than the largest of the positions, of which there is at least one. The graph's number
// has 32 bits: throws carousel::Error (kModel, field "positions") for a longer one.
std::int32_t ContextLength(std::span<const std::int64_t> position_ids);

}  // namespace carousel
