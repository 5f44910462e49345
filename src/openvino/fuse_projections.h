// SPDX-License-Identifier: Apache-2.0
// Matrix products of the same rows become one: a step of one token waits for each product's threads
// to meet, which costs as much as a small product itself.
#pragma once

#include <cstdint>
#include <openvino/core/model.hpp>

namespace carousel {

// Stacks the weights of products that read the same rows, such as the projections to queries, keys
// and values, and splits what comes out. Weights may be plain or compressed: converted, scaled,
// with zero points, in groups; the stack is compressed likewise, code for code. Products whose
// weights differ in kind stay as they are, and so do those that are followed by a bias or an
// activation, which the runtime computes inside the product. Returns how many products were taken
// together.
std::int64_t FuseProjections(ov::Model& model);

}  // namespace carousel
