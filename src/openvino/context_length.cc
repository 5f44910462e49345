// SPDX-License-Identifier: Apache-2.0
#include "openvino/context_length.h"

#include <fmt/format.h>

#include <algorithm>
#include <limits>

#include "carousel/error.h"

namespace carousel {

std::int32_t ContextLength(std::span<const std::int64_t> position_ids) {
  const std::int64_t length = *std::max_element(position_ids.begin(), position_ids.end()) + 1;
  constexpr std::int64_t kMost = std::numeric_limits<std::int32_t>::max();
  if (length > kMost) {
    throw Error(ErrorCode::kModel, "positions",
                fmt::format("a token at position {} is beyond the {} that this model's graph can "
                            "count; use compact positions, which start anew inside the window",
                            length - 1, kMost));
  }
  return static_cast<std::int32_t>(length);
}

}  // namespace carousel
