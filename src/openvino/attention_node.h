// SPDX-License-Identifier: Apache-2.0
// Reads a layer's attention off the graph: what the original node says, and what
// SDPAToPagedAttention made of it.
#pragma once

#include <cstdint>
#include <memory>
#include <openvino/core/model.hpp>
#include <openvino/runtime/core.hpp>
#include <string>
#include <vector>

#include "carousel/model.h"
#include "openvino/attention_mask.h"

namespace carousel {

// Of a ScaledDotProductAttention in the model as read: what the pass may lose on the way.
struct OriginalAttention {
  std::string name;
  bool has_sinks = false;
  float soft_cap = 0.0F;
  MaskFacts mask;
};

// In the graph's order. Soft caps are taken out of the masks of `model`. Throws carousel::Error
// (kModel, "model") when there is no attention, or as TakeOutSoftCap and MeasureMasks do.
std::vector<OriginalAttention> FindOriginalAttention(ov::Core& core,
                                                     const std::shared_ptr<ov::Model>& model,
                                                     std::int64_t trained_window);

// Inputs of a PagedAttentionExtension that are attention's own; the others are the paging's.
inline constexpr std::size_t kQueryInput = 0;
inline constexpr std::size_t kKeyInput = 1;
inline constexpr std::size_t kValueInput = 2;

// The pass's nodes, in the order of the attention that they stand for, which is the graph's order
// too. Throws carousel::Error when one original has no node, or they do not follow one another.
std::vector<std::shared_ptr<ov::Node>> FindPagedAttention(
    const ov::Model& model, const std::vector<OriginalAttention>& originals);

// Throws carousel::Error (kModel, "model") with the original's name for what is not supported: a
// scale, sinks or an option that is not constant, heads that do not fit the shapes.
AttentionLayerSpec ReadLayerSpec(const std::shared_ptr<ov::Node>& paged,
                                 const OriginalAttention& original);

}  // namespace carousel
