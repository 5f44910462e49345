// SPDX-License-Identifier: Apache-2.0
#include "openvino/soft_cap.h"

#include <fmt/format.h>

#include <cmath>
#include <openvino/op/add.hpp>
#include <openvino/op/divide.hpp>
#include <openvino/op/matmul.hpp>
#include <openvino/op/multiply.hpp>
#include <openvino/op/subtract.hpp>
#include <openvino/op/tanh.hpp>
#include <optional>
#include <vector>

#include "carousel/error.h"
#include "openvino/constants.h"

namespace carousel {
namespace {

using NodePtr = std::shared_ptr<ov::Node>;
using Value = ov::Output<ov::Node>;
using Attention = ov::op::v13::ScaledDotProductAttention;

constexpr std::size_t kMaskInput = 3;
constexpr std::size_t kScaleInput = 4;

[[noreturn]] void Refuse(const Attention& attention, const std::string& problem) {
  throw Error(
      ErrorCode::kModel, "model",
      fmt::format("the soft cap of its attention {} {}", attention.get_friendly_name(), problem));
}

std::optional<double> OneConstant(const Value& value) {
  const std::optional<std::vector<double>> values = ConstantValues(value);
  if (!values || values->size() != 1) return std::nullopt;
  return values->front();
}

// A product or a quotient of something and a constant.
struct Scaled {
  Value value;
  double factor = 0.0;
};

template <typename Operation>
std::optional<Scaled> MatchScaled(const Value& output) {
  const NodePtr node = output.get_node_shared_ptr();
  if (!ov::is_type<Operation>(node)) return std::nullopt;
  const std::optional<double> factor = OneConstant(node->input_value(1));
  if (!factor) return std::nullopt;
  return Scaled{node->input_value(0), *factor};
}

// cap * tanh(scores / cap)
std::optional<Scaled> MatchCapped(const Value& output) {
  const auto outer = MatchScaled<ov::op::v1::Multiply>(output);
  if (!outer || !ov::is_type<ov::op::v0::Tanh>(outer->value.get_node_shared_ptr())) {
    return std::nullopt;
  }
  const auto inner = MatchScaled<ov::op::v1::Divide>(outer->value.get_node()->input_value(0));
  if (!inner || inner->factor != outer->factor) return std::nullopt;
  return inner;
}

bool AreScoresOf(const Attention& attention, const Value& scores) {
  const auto scaled = MatchScaled<ov::op::v1::Multiply>(scores);
  if (!scaled || attention.get_input_size() <= kScaleInput) return false;
  const auto product = ov::as_type_ptr<ov::op::v0::MatMul>(scaled->value.get_node_shared_ptr());
  const std::optional<double> scale = OneConstant(attention.input_value(kScaleInput));
  return product && !product->get_transpose_a() && product->get_transpose_b() &&
         product->input_value(0) == attention.input_value(0) &&
         product->input_value(1) == attention.input_value(1) && scale == scaled->factor;
}

}  // namespace

float TakeOutSoftCap(const std::shared_ptr<Attention>& attention) {
  if (attention->get_input_size() <= kMaskInput) return 0.0F;
  const auto sum =
      ov::as_type_ptr<ov::op::v1::Add>(attention->get_input_node_shared_ptr(kMaskInput));
  if (!sum) return 0.0F;
  const auto change = ov::as_type_ptr<ov::op::v1::Subtract>(sum->get_input_node_shared_ptr(1));
  if (!change) return 0.0F;
  const std::optional<Scaled> capped = MatchCapped(change->input_value(0));
  if (!capped || capped->value != change->input_value(1)) return 0.0F;
  if (!AreScoresOf(*attention, capped->value)) {
    Refuse(*attention, "is one of other scores than its own; that is not supported");
  }
  const double cap = capped->factor;
  if (!std::isfinite(cap) || cap <= 0.0) {
    Refuse(*attention, fmt::format("is {}, but must be positive", cap));
  }
  attention->input(kMaskInput).replace_source_output(sum->input_value(0));
  return static_cast<float>(cap);
}

}  // namespace carousel
