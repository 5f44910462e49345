// SPDX-License-Identifier: Apache-2.0
#include "openvino/fuse_projections.h"

#include <algorithm>
#include <cstring>
#include <map>
#include <memory>
#include <openvino/core/rt_info.hpp>
#include <openvino/op/add.hpp>
#include <openvino/op/constant.hpp>
#include <openvino/op/convert.hpp>
#include <openvino/op/matmul.hpp>
#include <openvino/op/multiply.hpp>
#include <openvino/op/reshape.hpp>
#include <openvino/op/subtract.hpp>
#include <openvino/op/variadic_split.hpp>
#include <optional>
#include <set>
#include <string_view>
#include <utility>
#include <vector>

#include "openvino/constants.h"

namespace carousel {
namespace {

namespace v0 = ov::op::v0;
namespace v1 = ov::op::v1;
using NodePtr = std::shared_ptr<ov::Node>;
using ConstantPtr = std::shared_ptr<v0::Constant>;

// Expressions of the same kind, one per product, to be stacked along their first axis.
using Alike = std::vector<NodePtr>;

Alike InputsOf(const Alike& nodes, std::size_t input) {
  Alike inputs;
  for (const NodePtr& node : nodes) inputs.push_back(node->get_input_node_shared_ptr(input));
  return inputs;
}

bool AreSameType(const Alike& nodes) {
  return std::all_of(nodes.begin(), nodes.end(), [&](const NodePtr& node) {
    return node->get_type_info() == nodes[0]->get_type_info() && node->get_output_size() == 1 &&
           node->get_output_element_type(0) == nodes[0]->get_output_element_type(0);
  });
}

template <typename T>
std::vector<std::shared_ptr<T>> As(const Alike& nodes) {
  std::vector<std::shared_ptr<T>> typed;
  for (const NodePtr& node : nodes) typed.push_back(ov::as_type_ptr<T>(node));
  return typed;
}

// One number for all, such as a scale of 1: kept when it is the same everywhere.
NodePtr SharedConstant(const std::vector<ConstantPtr>& constants) {
  for (const ConstantPtr& constant : constants) {
    const bool is_same = constant->get_shape() == constants[0]->get_shape() &&
                         std::memcmp(constant->get_data_ptr(), constants[0]->get_data_ptr(),
                                     constants[0]->get_byte_size()) == 0;
    if (!is_same) return nullptr;
  }
  return constants[0];
}

NodePtr StackConstants(const std::vector<ConstantPtr>& constants,
                       const std::vector<std::size_t>& rows) {
  const ov::Shape& first = constants[0]->get_shape();
  if (ov::shape_size(first) == 1) return SharedConstant(constants);
  ov::Shape stacked = first;
  stacked[0] = 0;
  std::size_t bytes = 0;
  for (std::size_t i = 0; i < constants.size(); ++i) {
    const ov::Shape& shape = constants[i]->get_shape();
    const bool fits = shape.size() == first.size() && shape[0] == rows[i] &&
                      std::equal(shape.begin() + 1, shape.end(), first.begin() + 1);
    // Codes of less than a byte: rows must not share one.
    const std::size_t bits = constants[i]->get_element_type().bitwidth();
    if (!fits || (ov::shape_size(shape) / shape[0] * bits) % 8 != 0) return nullptr;
    stacked[0] += rows[i];
    bytes += constants[i]->get_byte_size();
  }
  const auto result = std::make_shared<v0::Constant>(constants[0]->get_element_type(), stacked);
  if (result->get_byte_size() != bytes) return nullptr;
  // The node is ours alone until it is returned.
  auto* to = const_cast<char*>(static_cast<const char*>(result->get_data_ptr()));
  for (const ConstantPtr& constant : constants) {
    std::memcpy(to, constant->get_data_ptr(), constant->get_byte_size());
    to += constant->get_byte_size();
  }
  return result;
}

// [rows, ...] as a target of Reshape.
NodePtr StackTargets(const Alike& targets, const std::vector<std::size_t>& rows) {
  std::vector<std::int64_t> stacked;
  std::int64_t all_rows = 0;
  for (std::size_t i = 0; i < targets.size(); ++i) {
    const auto constant = ov::as_type_ptr<v0::Constant>(targets[i]);
    if (!constant) return nullptr;
    std::vector<std::int64_t> target = constant->cast_vector<std::int64_t>();
    if (target.empty() || target[0] != static_cast<std::int64_t>(rows[i])) return nullptr;
    all_rows += target[0];
    target[0] = 0;
    if (i > 0 && target != stacked) return nullptr;
    stacked = std::move(target);
  }
  stacked[0] = all_rows;
  return v0::Constant::create(ov::element::i64, ov::Shape{stacked.size()}, stacked);
}

// Null where they cannot be stacked.
NodePtr StackRows(const Alike& nodes, const std::vector<std::size_t>& rows) {
  if (!AreSameType(nodes)) return nullptr;
  const NodePtr& first = nodes[0];
  if (ov::is_type<v0::Constant>(first)) return StackConstants(As<v0::Constant>(nodes), rows);
  const bool is_known = ov::is_type<v0::Convert>(first) || ov::is_type<v1::Multiply>(first) ||
                        ov::is_type<v1::Subtract>(first) || ov::is_type<v1::Reshape>(first);
  if (!is_known) return nullptr;
  ov::OutputVector inputs;
  for (std::size_t input = 0; input < first->get_input_size(); ++input) {
    const bool is_target = input == 1 && ov::is_type<v1::Reshape>(first);
    const Alike alike = InputsOf(nodes, input);
    const NodePtr stacked = is_target ? StackTargets(alike, rows) : StackRows(alike, rows);
    if (!stacked) return nullptr;
    inputs.push_back(stacked);
  }
  const NodePtr result = first->clone_with_new_inputs(inputs);
  // Among it the note that this is a compressed weight, to be kept as it is.
  ov::copy_runtime_info(first, result);
  return result;
}

// A bias, or an activation.
bool IsJoinedWithReader(const NodePtr& product) {
  static const std::set<std::string_view> activations = {"Swish", "Gelu", "Relu",  "Sigmoid",
                                                         "Tanh",  "Elu",  "HSwish"};
  const auto readers = product->output(0).get_target_inputs();
  return std::any_of(readers.begin(), readers.end(), [](const ov::Input<ov::Node>& reader) {
    const ov::Node* node = reader.get_node();
    if (activations.count(node->get_type_name()) > 0) return true;
    return ov::is_type<v1::Add>(node) &&
           DependsOnConstantsOnly(node->input_value(1 - reader.get_index()));
  });
}

// [rows, depth] of a product whose second input is constant and transposed; nullopt of others.
std::optional<ov::Shape> WeightShape(const NodePtr& node) {
  const auto product = ov::as_type_ptr<v0::MatMul>(node);
  if (!product || product->get_transpose_a() || !product->get_transpose_b()) return std::nullopt;
  const ov::PartialShape& shape = product->get_input_partial_shape(1);
  const bool is_matrix = shape.is_static() && shape.size() == 2;
  if (!is_matrix || product->get_output_partial_shape(0).rank().is_dynamic()) return std::nullopt;
  if (!DependsOnConstantsOnly(product->input_value(1))) return std::nullopt;
  return shape.to_shape();
}

bool Fuse(const Alike& products) {
  if (std::any_of(products.begin(), products.end(), IsJoinedWithReader)) return false;
  std::vector<std::size_t> rows;
  for (const NodePtr& product : products) rows.push_back((*WeightShape(product))[0]);
  const NodePtr weights = StackRows(InputsOf(products, 1), rows);
  if (!weights) return false;
  const auto product =
      products[0]->clone_with_new_inputs({products[0]->input_value(0), weights->output(0)});
  product->set_friendly_name(products[0]->get_friendly_name() + "/fused");
  const auto last = static_cast<std::int64_t>(product->get_output_partial_shape(0).size()) - 1;
  const auto split = std::make_shared<v1::VariadicSplit>(
      product, v0::Constant::create(ov::element::i64, ov::Shape{}, {last}),
      v0::Constant::create(ov::element::i64, ov::Shape{rows.size()}, rows));
  ov::copy_runtime_info(ov::NodeVector(products.begin(), products.end()), {product, split});
  for (std::size_t i = 0; i < products.size(); ++i)
    products[i]->output(0).replace(split->output(i));
  return true;
}

}  // namespace

std::int64_t FuseProjections(ov::Model& model) {
  std::map<std::pair<ov::Node*, std::size_t>, Alike> readers;
  std::vector<std::pair<ov::Node*, std::size_t>> order;
  for (const NodePtr& node : model.get_ordered_ops()) {
    if (!WeightShape(node)) continue;
    const ov::Output<ov::Node> rows = node->input_value(0);
    const std::pair<ov::Node*, std::size_t> key = {rows.get_node(), rows.get_index()};
    if (readers[key].empty()) order.push_back(key);
    readers[key].push_back(node);
  }
  std::int64_t fused = 0;
  for (const auto& key : order) {
    const Alike& products = readers[key];
    if (products.size() > 1 && Fuse(products)) fused += std::ssize(products);
  }
  return fused;
}

}  // namespace carousel
