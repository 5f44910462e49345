// SPDX-License-Identifier: Apache-2.0
// A graph for steps of one token beside the graph for any number, in one compiled model.
#pragma once

#include <memory>
#include <openvino/core/model.hpp>

namespace carousel {

inline constexpr const char* kOneTokenInput = "is_one_token";  // [1], boolean

// `model` has inputs of one axis, [T] or [R], or of none. The result has the same inputs and output
// and one input more, which must be true only where each of the others holds one number. It then
// runs a copy of the graph in which that is known, so that the runtime works out shapes and memory
// once and not in every step, and joins more operations; otherwise it runs `model`. The runtime
// keeps one prepared copy of the weights for both.
std::shared_ptr<ov::Model> WithOneTokenBranch(const std::shared_ptr<ov::Model>& model);

}  // namespace carousel
