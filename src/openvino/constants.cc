// SPDX-License-Identifier: Apache-2.0
#include "openvino/constants.h"

#include <memory>
#include <openvino/core/model.hpp>
#include <openvino/op/constant.hpp>
#include <openvino/op/util/read_value_base.hpp>
#include <unordered_set>

namespace carousel {

bool DependsOnConstantsOnly(const ov::Output<ov::Node>& output) {
  std::unordered_set<ov::Node*> seen;
  std::vector<ov::Node*> open = {output.get_node()};
  while (!open.empty()) {
    ov::Node* node = open.back();
    open.pop_back();
    if (!seen.insert(node).second) continue;
    if (ov::is_type<ov::op::util::ReadValueBase>(node)) return false;
    if (node->get_input_size() == 0 && !ov::is_type<ov::op::v0::Constant>(node)) return false;
    for (const auto& input : node->input_values()) open.push_back(input.get_node());
  }
  return true;
}

std::optional<std::vector<double>> ConstantValues(const ov::Output<ov::Node>& output) {
  if (!DependsOnConstantsOnly(output)) return std::nullopt;
  auto constant = ov::as_type_ptr<ov::op::v0::Constant>(output.get_node_shared_ptr());
  if (!constant) {
    const ov::Model expression(ov::OutputVector{output}, ov::ParameterVector{});
    ov::TensorVector results(1);
    if (!expression.evaluate(results, {})) return std::nullopt;
    constant = std::make_shared<ov::op::v0::Constant>(results[0]);
  }
  return constant->cast_vector<double>();
}

}  // namespace carousel
