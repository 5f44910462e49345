// SPDX-License-Identifier: Apache-2.0
// Soft caps of attention scores: cap * tanh(s / cap) in place of s (Gemma 2).
//
// ScaledDotProductAttention has none. A graph can still be exact by adding (cap * tanh(s / cap) -
// s) to the mask, with s computed once more; tools/decoder_graph.py writes it so. Here it is known
// again, and taken out before the masks are measured and SDPAToPagedAttention drops them.
#pragma once

#include <memory>
#include <openvino/op/scaled_dot_product_attention.hpp>

namespace carousel {

// The cap in the mask of `attention`, which is then left with the mask alone; 0 where there is
// none. Throws carousel::Error (kModel, "model") for a cap of other scores than the attention's own
// or one that is not a positive constant.
float TakeOutSoftCap(const std::shared_ptr<ov::op::v13::ScaledDotProductAttention>& attention);

}  // namespace carousel
