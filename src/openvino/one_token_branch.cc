// SPDX-License-Identifier: Apache-2.0
#include "openvino/one_token_branch.h"

#include <openvino/op/constant.hpp>
#include <openvino/op/if.hpp>
#include <openvino/op/parameter.hpp>
#include <openvino/op/reshape.hpp>
#include <openvino/op/result.hpp>
#include <string>

#include "base/check.h"

namespace carousel {
namespace {

using Parameter = ov::op::v0::Parameter;
using Result = ov::op::v0::Result;

// Shapes of a branch's parameters are those of what is passed in, so that the size is stated behind
// them.
void FixSizes(ov::Model& model) {
  for (const auto& parameter : model.get_parameters()) {
    if (parameter->get_partial_shape().is_static()) continue;
    const auto readers = parameter->output(0).get_target_inputs();
    const auto one = ov::op::v0::Constant::create(ov::element::i64, ov::Shape{1}, {1});
    const auto fixed = std::make_shared<ov::op::v1::Reshape>(parameter, one, false);
    for (ov::Input<ov::Node> reader : readers) reader.replace_source_output(fixed->output(0));
  }
  model.validate_nodes_and_infer_types();
}

std::shared_ptr<Parameter> MakeInput(ov::element::Type type, const ov::PartialShape& shape,
                                     const std::string& name,
                                     const std::unordered_set<std::string>& names) {
  auto input = std::make_shared<Parameter>(type, shape);
  input->set_friendly_name(name);
  input->get_output_tensor(0).set_names(names);
  return input;
}

}  // namespace

std::shared_ptr<ov::Model> WithOneTokenBranch(const std::shared_ptr<ov::Model>& model) {
  CAROUSEL_CHECK_EQ(model->get_results().size(), std::size_t{1});
  // Constants are shared between the two.
  const std::shared_ptr<ov::Model> of_one = model->clone();
  FixSizes(*of_one);
  const auto is_one =
      MakeInput(ov::element::boolean, ov::Shape{1}, kOneTokenInput, {kOneTokenInput});
  const auto branch = std::make_shared<ov::op::v8::If>(is_one);
  branch->set_then_body(of_one);
  branch->set_else_body(model);
  ov::ParameterVector inputs = {is_one};
  for (std::size_t i = 0; i < model->get_parameters().size(); ++i) {
    const auto& inner = model->get_parameters()[i];
    inputs.push_back(MakeInput(inner->get_element_type(), inner->get_partial_shape(),
                               inner->get_friendly_name(),
                               inner->get_output_tensor(0).get_names()));
    branch->set_input(inputs.back(), of_one->get_parameters()[i], inner);
  }
  const auto& inner_result = model->get_results()[0];
  const auto output = branch->set_output(of_one->get_results()[0], inner_result);
  const auto result = std::make_shared<Result>(output);
  result->get_output_tensor(0).set_names(inner_result->get_output_tensor(0).get_names());
  return std::make_shared<ov::Model>(ov::ResultVector{result}, inputs, model->get_friendly_name());
}

}  // namespace carousel
