// SPDX-License-Identifier: Apache-2.0
// What a graph's attention masks do, found out by computing them.
//
// SDPAToPagedAttention drops each mask and puts a causal one in its place; a sliding window or a
// bias that is not written in one of the forms that it knows is lost without a word. So masks are
// not recognised here but run, on their own, for a prompt and for a late position, and read off.
#pragma once

#include <cstdint>
#include <memory>
#include <openvino/core/model.hpp>
#include <openvino/runtime/core.hpp>
#include <vector>

namespace carousel {

struct MaskFacts {
  std::int64_t sliding_window = 0;  // tokens that a query sees, itself included; 0: all
  std::vector<float> alibi_slopes;  // [heads] or [1] for all: bias = -slope * distance; empty: none
  std::int64_t measured_tokens = 0;  // a window longer than this would not have been seen
};

// One entry per ScaledDotProductAttention, in the graph's order. `longest` is how far back a window
// can be told from none (the trained window). `model` is as read from the file, and is not changed.
// Throws carousel::Error (kModel, "model") naming the node whose mask is not causal, hides
// something else than a sliding window does, adds a bias that is not ALiBi, or cannot be computed
// without the rest of the model.
std::vector<MaskFacts> MeasureMasks(ov::Core& core, const std::shared_ptr<ov::Model>& model,
                                    std::int64_t longest);

}  // namespace carousel
