// SPDX-License-Identifier: Apache-2.0
#include "openvino/attention_node.h"

#include <fmt/format.h>

#include <algorithm>
#include <cmath>
#include <openvino/op/scaled_dot_product_attention.hpp>
#include <optional>
#include <string_view>

#include "carousel/error.h"
#include "openvino/constants.h"
#include "openvino/soft_cap.h"

namespace carousel {
namespace {

using NodePtr = std::shared_ptr<ov::Node>;
using Values = std::vector<double>;
using Attention = ov::op::v13::ScaledDotProductAttention;

// Further inputs of a PagedAttentionExtension. Those not named here are the paging's, or belong to
// options of the pass that are switched off.
constexpr std::size_t kKeyCacheInput = 3;
constexpr std::size_t kScaleInput = 9;
constexpr std::size_t kSlidingWindowInput = 10;
constexpr std::size_t kSinksInput = 20;
constexpr std::size_t kTokenTypesInput = 25;
constexpr std::size_t kInputs = 28;

constexpr std::size_t kSinksOfOriginal = 5;

[[noreturn]] void Refuse(const std::string& problem) {
  throw Error(ErrorCode::kModel, "model", problem);
}

bool IsType(const ov::Node& node, std::string_view type) { return node.get_type_name() == type; }

// Reads one node; messages carry the original's name.
class NodeReader {
 public:
  NodeReader(const ov::Node& node, std::string name) : node_(node), name_(std::move(name)) {}

  Values Constant(std::size_t input, std::string_view what) const {
    std::optional<Values> values = ConstantValues(node_.input_value(input));
    if (values) return *std::move(values);
    Refuse(
        fmt::format("the {} of its attention {} depends on the input; only constants are supported",
                    what, name_));
  }

  std::int64_t Width(std::size_t input) const {
    const ov::PartialShape& shape = node_.get_input_partial_shape(input);
    const bool is_known = shape.rank().is_static() && shape.size() == 2 && shape[1].is_static();
    if (is_known) return shape[1].get_length();
    Refuse(fmt::format("input {} of its attention {} has the shape {}; a fixed width is needed",
                       input, name_, shape.to_string()));
  }

  // What the pass notes on its nodes.
  std::int64_t Note(const std::string& key) const {
    const auto found = node_.get_rt_info().find(key);
    if (found != node_.get_rt_info().end() && found->second.is<std::int64_t>()) {
      return found->second.as<std::int64_t>();
    }
    Refuse(
        fmt::format("OpenVINO does not say {} of attention {}; it is not the release that "
                    "Carousel was built against",
                    key, name_));
  }

  // The pass computes 1 / sqrt(q's last size) in the graph where it cannot fold it.
  bool HasScaleOfQueryShape() const {
    const ov::Node* node = node_.get_input_node_ptr(kScaleInput);
    if (!IsType(*node, "Divide")) return false;
    for (const std::string_view type : {"Sqrt", "Convert", "Gather", "ShapeOf"}) {
      node = node->get_input_node_ptr(type == "Sqrt" ? 1 : 0);
      if (!IsType(*node, type)) return false;
    }
    return true;
  }

 private:
  const ov::Node& node_;
  std::string name_;
};

void ReadHeads(const NodeReader& reader, AttentionLayerSpec& spec) {
  const std::int64_t queries = reader.Width(kQueryInput);
  const std::int64_t keys = reader.Width(kKeyInput);
  const std::int64_t values = reader.Width(kValueInput);
  spec.key_dim = reader.Note("k_head_size");
  spec.value_dim = reader.Note("v_head_size");
  spec.kv_heads = reader.Note("num_k_heads");
  const bool is_positive = spec.key_dim > 0 && spec.value_dim > 0 && spec.kv_heads > 0;
  spec.query_heads = is_positive ? queries / spec.key_dim : 0;
  // Checked against the shapes, because the pass infers the heads from how they are broadcast.
  const bool fits =
      is_positive && spec.query_heads > 0 && queries == spec.query_heads * spec.key_dim &&
      keys == spec.kv_heads * spec.key_dim && values == spec.kv_heads * spec.value_dim &&
      reader.Note("num_v_heads") == spec.kv_heads && spec.query_heads % spec.kv_heads == 0;
  if (fits) return;
  Refuse(
      fmt::format("the heads of its attention {} do not fit its shapes: queries {}, keys {}, "
                  "values {}, with {} KV heads of {} and {}",
                  spec.name, queries, keys, values, spec.kv_heads, spec.key_dim, spec.value_dim));
}

void ReadScale(const NodeReader& reader, AttentionLayerSpec& spec) {
  if (reader.HasScaleOfQueryShape()) {
    spec.scale = static_cast<float>(1.0 / std::sqrt(static_cast<double>(spec.key_dim)));
    return;
  }
  const Values scale = reader.Constant(kScaleInput, "scale");
  if (scale.size() != 1 || !std::isfinite(scale[0])) {
    Refuse(fmt::format("the scale of its attention {} is not one number", spec.name));
  }
  spec.scale = static_cast<float>(scale[0]);
}

void ReadSinks(const NodeReader& reader, const OriginalAttention& original,
               AttentionLayerSpec& spec) {
  const Values sinks = reader.Constant(kSinksInput, "sinks");
  spec.sinks.assign(sinks.begin(), sinks.end());
  // The pass drops sinks whose shape it does not expect.
  const std::int64_t wanted = original.has_sinks ? spec.query_heads : 0;
  if (std::ssize(spec.sinks) == wanted) return;
  Refuse(fmt::format("attention {} has {} sinks for {} heads", spec.name, sinks.size(),
                     spec.query_heads));
}

void ReadMask(const NodeReader& reader, const OriginalAttention& original,
              AttentionLayerSpec& spec) {
  spec.sliding_window = original.mask.sliding_window;
  // Wider than what was measured: the pass's word for it.
  if (spec.sliding_window == 0) {
    const Values window = reader.Constant(kSlidingWindowInput, "sliding window");
    const bool is_length = window.size() == 1 && window[0] >= 0.0;
    if (!is_length) Refuse(fmt::format("attention {} has no readable window", spec.name));
    const auto length = static_cast<std::int64_t>(window[0]);
    if (length > original.mask.measured_tokens) spec.sliding_window = length;
  }
  spec.alibi_slopes = original.mask.alibi_slopes;
  if (spec.alibi_slopes.size() == 1) {
    spec.alibi_slopes.resize(static_cast<std::size_t>(spec.query_heads), spec.alibi_slopes[0]);
  }
  if (spec.alibi_slopes.empty() || std::ssize(spec.alibi_slopes) == spec.query_heads) return;
  Refuse(fmt::format("attention {} has {} ALiBi slopes for {} heads", spec.name,
                     spec.alibi_slopes.size(), spec.query_heads));
}

// "key_cache.<layer>" is the name of the parameter that the pass gives each node.
std::optional<std::size_t> LayerNumber(const ov::Node& paged) {
  const std::string name = paged.get_input_node_ptr(kKeyCacheInput)->get_friendly_name();
  const std::string prefix = "key_cache.";
  if (name.rfind(prefix, 0) != 0) return std::nullopt;
  return std::stoul(name.substr(prefix.size()));
}

}  // namespace

std::vector<OriginalAttention> FindOriginalAttention(ov::Core& core,
                                                     const std::shared_ptr<ov::Model>& model,
                                                     std::int64_t trained_window) {
  std::vector<OriginalAttention> originals;
  for (const NodePtr& node : model->get_ordered_ops()) {
    const auto attention = ov::as_type_ptr<Attention>(node);
    if (!attention) continue;
    originals.push_back({.name = node->get_friendly_name(),
                         .has_sinks = node->get_input_size() > kSinksOfOriginal,
                         .soft_cap = TakeOutSoftCap(attention),
                         .mask = {}});
  }
  if (originals.empty()) {
    Refuse(
        "its graph has no ScaledDotProductAttention, so there is no attention to take over; "
        "export it with attention as that operation, as optimum-cli export openvino does");
  }
  std::vector<MaskFacts> masks = MeasureMasks(core, model, trained_window);
  for (std::size_t i = 0; i < originals.size(); ++i) originals[i].mask = std::move(masks[i]);
  return originals;
}

std::vector<NodePtr> FindPagedAttention(const ov::Model& model,
                                        const std::vector<OriginalAttention>& originals) {
  std::vector<NodePtr> nodes;
  for (const NodePtr& node : model.get_ordered_ops()) {
    if (ov::is_type<Attention>(node)) {
      Refuse(fmt::format("OpenVINO's SDPAToPagedAttention does not recognise its attention {}",
                         node->get_friendly_name()));
    }
    if (!IsType(*node, "PagedAttentionExtension")) continue;
    if (node->get_input_size() != kInputs) {
      Refuse(
          fmt::format("OpenVINO's paged attention has {} inputs and not {}: it is not the "
                      "release that Carousel was built against",
                      node->get_input_size(), kInputs));
    }
    if (LayerNumber(*node) != nodes.size())
      Refuse("its layers of attention do not follow one another");
    nodes.push_back(node);
  }
  if (nodes.size() != originals.size()) {
    Refuse(fmt::format("OpenVINO's SDPAToPagedAttention keeps {} of its {} attention nodes",
                       nodes.size(), originals.size()));
  }
  return nodes;
}

AttentionLayerSpec ReadLayerSpec(const NodePtr& paged, const OriginalAttention& original) {
  const NodeReader reader(*paged, original.name);
  AttentionLayerSpec spec;
  spec.name = original.name;
  ReadHeads(reader, spec);
  ReadScale(reader, spec);
  ReadSinks(reader, original, spec);
  ReadMask(reader, original, spec);
  spec.soft_cap = original.soft_cap;
  if (!reader.Constant(kTokenTypesInput, "token types").empty()) {
    Refuse(fmt::format("attention {} reads token types, which is not supported", spec.name));
  }
  return spec;
}

}  // namespace carousel
