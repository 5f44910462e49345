// SPDX-License-Identifier: Apache-2.0
#include "models/plain_model.h"

#include <algorithm>
#include <chrono>
#include <memory>
#include <openvino/op/constant.hpp>
#include <openvino/op/matmul.hpp>
#include <openvino/op/slice.hpp>
#include <openvino/runtime/properties.hpp>
#include <stdexcept>
#include <string>

namespace carousel::testing {
namespace {

// hidden [1, tokens, width] -> [1, 1, width] before the last MatMul.
void SliceLastRow(ov::Model& model) {
  std::shared_ptr<ov::Node> node = model.get_results()[0]->get_input_node_shared_ptr(0);
  while (!ov::is_type<ov::op::v0::MatMul>(node)) {
    if (node->get_input_size() == 0) throw std::runtime_error("no MatMul before the logits");
    node = node->get_input_node_shared_ptr(0);
  }
  const auto index = [](std::int64_t value) {
    return ov::op::v0::Constant::create(ov::element::i64, ov::Shape{1}, {value});
  };
  const auto last = std::make_shared<ov::op::v8::Slice>(node->input_value(0), index(-1), index(-2),
                                                        index(-1), index(1));
  node->input(0).replace_source_output(last->output(0));
  model.validate_nodes_and_infer_types();
}

template <typename T>
ov::Tensor Filled(ov::element::Type type, const ov::Shape& shape, T first, T step) {
  ov::Tensor tensor(type, shape);
  for (std::size_t i = 0; i < tensor.get_size(); ++i) {
    tensor.data<T>()[i] = first + step * static_cast<T>(i);
  }
  return tensor;
}

}  // namespace

PlainModel::PlainModel(const PlainModelOptions& options) {
  const auto model = core_.read_model((options.directory / "openvino_model.xml").string());
  if (options.last_row_only) SliceLastRow(*model);
  ov::AnyMap properties = {ov::hint::inference_precision(ov::element::f32),
                           ov::hint::kv_cache_precision(ov::element::f32),
                           ov::hint::dynamic_quantization_group_size(0),
                           ov::hint::performance_mode(ov::hint::PerformanceMode::LATENCY),
                           ov::hint::enable_cpu_pinning(false),
                           ov::num_streams(1),
                           ov::enable_profiling(options.has_profile)};
  if (options.threads > 0) {
    properties.insert(ov::inference_num_threads(static_cast<std::int32_t>(options.threads)));
  }
  compiled_ = core_.compile_model(model, "CPU", properties);
  request_ = compiled_.create_infer_request();
}

std::span<const float> PlainModel::Step(std::span<const TokenId> tokens) {
  const std::size_t count = tokens.size();
  ov::Tensor ids(ov::element::i64, ov::Shape{1, count});
  std::copy(tokens.begin(), tokens.end(), ids.data<std::int64_t>());
  const std::size_t whole = static_cast<std::size_t>(past_) + count;
  for (const auto& input : compiled_.inputs()) {
    const auto& names = input.get_names();
    if (names.count("input_ids") > 0) request_.set_tensor(input, ids);
    if (names.count("attention_mask") > 0) {
      request_.set_tensor(input, Filled<std::int64_t>(ov::element::i64, {1, whole}, 1, 0));
    }
    if (names.count("position_ids") > 0) {
      request_.set_tensor(input, Filled<std::int64_t>(ov::element::i64, {1, count}, past_, 1));
    }
    if (names.count("beam_idx") > 0) {
      request_.set_tensor(input, Filled<std::int32_t>(ov::element::i32, {1}, 0, 0));
    }
  }
  request_.infer();
  past_ += static_cast<std::int64_t>(count);
  const ov::Tensor logits = request_.get_output_tensor(0);
  return {logits.data<const float>(), logits.get_size()};
}

double PlainModel::AttentionMilliseconds() const {
  double milliseconds = 0.0;
  for (const ov::ProfilingInfo& node : request_.get_profiling_info()) {
    if (node.node_type.find("ScaledDotProductAttention") == std::string::npos) continue;
    milliseconds += std::chrono::duration<double, std::milli>(node.real_time).count();
  }
  return milliseconds;
}

void PlainModel::Forget() {
  request_.reset_state();
  past_ = 0;
}

}  // namespace carousel::testing
