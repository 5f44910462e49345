// SPDX-License-Identifier: Apache-2.0
#include "openvino/attention_op.h"

#include <algorithm>
#include <openvino/core/type/bfloat16.hpp>
#include <utility>

#include "base/check.h"

namespace carousel {
namespace {

// The tensor's values as f32: its own memory when they are that already, otherwise a copy in
// `scratch`.
const float* AsFloat(const ov::Tensor& tensor, std::vector<float>& scratch) {
  if (tensor.get_element_type() == ov::element::f32) return tensor.data<float>();
  CAROUSEL_CHECK_EQ(tensor.get_element_type().get_type_name(), std::string("bf16"));
  const ov::bfloat16* values = tensor.data<ov::bfloat16>();
  scratch.assign(values, values + tensor.get_size());
  return scratch.data();
}

// Zeros in all rows from `first` on.
void ClearRows(ov::Tensor& tensor, std::size_t first) {
  char* bytes = static_cast<char*>(tensor.data());
  const std::size_t row_bytes = tensor.get_byte_size() / tensor.get_shape()[0];
  std::fill(bytes + first * row_bytes, bytes + tensor.get_byte_size(), char{0});
}

void Attend(AttentionCallback& callback, std::int64_t layer, std::int64_t tokens,
            const ov::TensorVector& inputs, ov::Tensor& output) {
  std::vector<float> q_scratch;
  std::vector<float> k_scratch;
  std::vector<float> v_scratch;
  const float* q = AsFloat(inputs[0], q_scratch);
  const float* k = AsFloat(inputs[1], k_scratch);
  const float* v = AsFloat(inputs[2], v_scratch);
  if (output.get_element_type() == ov::element::f32) {
    callback.Attend(layer, tokens, q, k, v, output.data<float>());
    return;
  }
  CAROUSEL_CHECK_EQ(output.get_element_type().get_type_name(), std::string("bf16"));
  std::vector<float> result(output.get_size());
  callback.Attend(layer, tokens, q, k, v, result.data());
  std::copy(result.begin(), result.end(), output.data<ov::bfloat16>());
}

}  // namespace

AttentionOp::AttentionOp(const ov::Output<ov::Node>& q, const ov::Output<ov::Node>& k,
                         const ov::Output<ov::Node>& v, Attributes attributes)
    : Op({q, k, v}), attributes_(std::move(attributes)) {
  constructor_validate_and_infer_types();
}

void AttentionOp::validate_and_infer_types() {
  const ov::PartialShape& query = get_input_partial_shape(0);
  const ov::Dimension tokens = query.rank().is_static() ? query[0] : ov::Dimension::dynamic();
  set_output_type(0, get_input_element_type(0), ov::PartialShape{tokens, attributes_.output_width});
}

std::shared_ptr<ov::Node> AttentionOp::clone_with_new_inputs(const ov::OutputVector& inputs) const {
  return std::make_shared<AttentionOp>(inputs.at(0), inputs.at(1), inputs.at(2), attributes_);
}

bool AttentionOp::visit_attributes(ov::AttributeVisitor& visitor) {
  visitor.on_attribute("layer", attributes_.layer);
  visitor.on_attribute("output_width", attributes_.output_width);
  return true;
}

bool AttentionOp::evaluate(ov::TensorVector& outputs, const ov::TensorVector& inputs) const {
  AttentionSlot& slot = *attributes_.slot;
  const std::size_t rows = inputs[0].get_shape()[0];
  CAROUSEL_CHECK_EQ(inputs[1].get_shape()[0], rows);
  CAROUSEL_CHECK_EQ(inputs[2].get_shape()[0], rows);
  outputs[0].set_shape({rows, static_cast<std::size_t>(attributes_.output_width)});
  if (rows == 0) return true;
  if (slot.callback == nullptr || slot.failure) {
    ClearRows(outputs[0], 0);
    return true;
  }
  CAROUSEL_CHECK_GT(slot.tokens, 0);
  CAROUSEL_CHECK_LE(slot.tokens, static_cast<std::int64_t>(rows));
  try {
    Attend(*slot.callback, attributes_.layer, slot.tokens, inputs, outputs[0]);
    ClearRows(outputs[0], static_cast<std::size_t>(slot.tokens));
  } catch (...) {
    slot.failure = std::current_exception();
    ClearRows(outputs[0], 0);
  }
  return true;
}

}  // namespace carousel
