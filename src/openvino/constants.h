// SPDX-License-Identifier: Apache-2.0
// Values of a graph that do not depend on its input.
#pragma once

#include <openvino/core/node_output.hpp>
#include <optional>
#include <vector>

namespace carousel {

// True when neither a parameter nor a state is behind `output`.
bool DependsOnConstantsOnly(const ov::Output<ov::Node>& output);

// The values in row order, computed when they are an expression; nullopt unless
// DependsOnConstantsOnly.
std::optional<std::vector<double>> ConstantValues(const ov::Output<ov::Node>& output);

}  // namespace carousel
