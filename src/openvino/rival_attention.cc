// SPDX-License-Identifier: Apache-2.0
#include "openvino/rival_attention.h"

#include <fmt/format.h>

#include <algorithm>
#include <cstring>
#include <numeric>
#include <openvino/core/model.hpp>
#include <openvino/op/ops.hpp>
#include <openvino/op/util/variable.hpp>
#include <openvino/pass/sdpa_to_paged_attention.hpp>
#include <openvino/runtime/core.hpp>
#include <openvino/runtime/properties.hpp>
#include <string>
#include <utility>
#include <vector>

#include "base/parallel.h"
#include "carousel/error.h"
#include "openvino/model_files.h"

namespace carousel {
namespace {

namespace v0 = ov::op::v0;
using NodePtr = std::shared_ptr<ov::Node>;
using Out = ov::Output<ov::Node>;
using Parameter = v0::Parameter;

// The operation's block size on CPUs.
constexpr std::int64_t kRivalBlock = 32;

[[noreturn]] void Fail(const std::string& problem) {
  throw Error(ErrorCode::kModel, "openvino", problem);
}

// Inputs of the operation; those above are constants of options that stay off.
enum Input : std::size_t {
  kQuery,
  kKey,
  kValue,
  kKeyCache,
  kValueCache,
  kPastLengths,
  kSubsequenceBegins,
  kBlockIndices,
  kBlockIndicesBegins,
  kScale,
  kSlidingWindow,
  kAlibiSlopes,
  kLongestContext,
};

template <typename T>
Out Constant(ov::element::Type type, const std::vector<T>& values) {
  return v0::Constant::create(type, ov::Shape{values.size()}, values);
}

// [batch, 1, past + length, 1]: a state that grows, as the pass expects keys and values to be.
Out GrowingState(const Out& fresh, const Out& beams, const std::string& name,
                 ov::SinkVector* sinks) {
  const auto variable = std::make_shared<ov::op::util::Variable>(
      ov::op::util::VariableInfo{ov::PartialShape{-1, 1, -1, 1}, ov::element::f32, name});
  const auto empty = v0::Constant::create<float>(ov::element::f32, ov::Shape{1, 1, 0, 1}, {});
  const auto read = std::make_shared<ov::op::v6::ReadValue>(empty, variable);
  const auto axis = v0::Constant::create(ov::element::i64, ov::Shape{}, {0});
  const auto past = std::make_shared<ov::op::v8::Gather>(read, beams, axis);
  const auto whole = std::make_shared<v0::Concat>(ov::OutputVector{past, fresh}, 2);
  sinks->push_back(std::make_shared<ov::op::v6::Assign>(whole, variable));
  return whole;
}

// The operation's class is in no header of the runtime. The pass makes one out of the smallest
// decoder that it accepts, and that one is cloned.
NodePtr MakePattern() {
  ov::ParameterVector parameters;
  const auto input = [&](const char* name, ov::element::Type type, const ov::PartialShape& shape) {
    parameters.push_back(std::make_shared<Parameter>(type, shape));
    parameters.back()->set_friendly_name(name);
    parameters.back()->get_output_tensor(0).set_names({name});
    return parameters.back();
  };
  const auto ids = input("input_ids", ov::element::i64, {-1, -1});
  input("position_ids", ov::element::i64, {-1, -1});
  const auto beams = input("beam_idx", ov::element::i32, {-1});
  const auto numbers = std::make_shared<v0::Convert>(ids, ov::element::f32);
  // [batch, length] to [batch, 1, length, 1]
  const auto heads =
      std::make_shared<v0::Unsqueeze>(numbers, Constant<std::int64_t>(ov::element::i64, {1, 3}));
  ov::SinkVector sinks;
  const Out keys = GrowingState(heads, beams, "keys", &sinks);
  const Out values = GrowingState(heads, beams, "values", &sinks);
  const auto mask = v0::Constant::create(ov::element::f32, ov::Shape{1, 1, 1, 1}, {0.0F});
  const auto attention = std::make_shared<ov::op::v13::ScaledDotProductAttention>(
      ov::OutputVector{heads, keys, values, mask}, false);
  const auto model = std::make_shared<ov::Model>(
      ov::ResultVector{std::make_shared<v0::Result>(attention)}, sinks, parameters);
  ov::pass::SDPAToPagedAttention().run_on_model(model);
  for (const NodePtr& node : model->get_ordered_ops()) {
    if (std::string_view(node->get_type_name()) == "PagedAttentionExtension") return node;
  }
  Fail("its pass SDPAToPagedAttention makes no paged attention any more");
}

// As many operations as the load has layers, over inputs that have the operation's own names.
class RivalGraph {
 public:
  explicit RivalGraph(const AttentionShape& shape) : shape_(shape), pattern_(MakePattern()) {
    const AttentionLayerSpec& layer = shape.layer;
    shared_ = pattern_->input_values();
    for (std::size_t i = kLongestContext + 1; i < shared_.size(); ++i) {
      if (!ov::is_type<v0::Constant>(shared_[i].get_node()))
        Fail(
            fmt::format("input {} of its paged attention is new; it is not the release that "
                        "Carousel was built against",
                        i));
    }
    const auto f32 = ov::element::f32;
    const auto i32 = ov::element::i32;
    shared_[kQuery] = AddInput("query", f32, {-1, layer.query_heads * layer.key_dim});
    shared_[kKey] = AddInput("key", f32, {-1, layer.kv_heads * layer.key_dim});
    shared_[kValue] = AddInput("value", f32, {-1, layer.kv_heads * layer.value_dim});
    shared_[kPastLengths] = AddInput("past_lens", i32, {-1});
    shared_[kSubsequenceBegins] = AddInput("subsequence_begins", i32, {-1});
    shared_[kBlockIndices] = AddInput("block_indices", i32, {-1});
    shared_[kBlockIndicesBegins] = AddInput("block_indices_begins", i32, {-1});
    shared_[kLongestContext] = AddInput("max_context_len", i32, ov::PartialShape{});
    shared_[kScale] = v0::Constant::create(f32, ov::Shape{}, {layer.scale});
  }

  std::shared_ptr<ov::Model> Build() {
    ov::ResultVector results;
    for (std::int64_t i = 0; i < shape_.layers; ++i) {
      ov::OutputVector inputs = shared_;
      // Types and sizes are the plugin's to settle.
      inputs[kKeyCache] =
          AddInput(fmt::format("key_cache.{}", i), ov::element::dynamic, {-1, -1, -1, -1});
      inputs[kValueCache] =
          AddInput(fmt::format("value_cache.{}", i), ov::element::dynamic, {-1, -1, -1, -1});
      const NodePtr node = pattern_->clone_with_new_inputs(inputs);
      const AttentionLayerSpec& layer = shape_.layer;
      node->get_rt_info()["num_k_heads"] = layer.kv_heads;
      node->get_rt_info()["num_v_heads"] = layer.kv_heads;
      node->get_rt_info()["k_head_size"] = layer.key_dim;
      node->get_rt_info()["v_head_size"] = layer.value_dim;
      results.push_back(std::make_shared<v0::Result>(node->output(0)));
    }
    return std::make_shared<ov::Model>(results, parameters_);
  }

 private:
  Out AddInput(const std::string& name, ov::element::Type type, const ov::PartialShape& shape) {
    parameters_.push_back(std::make_shared<Parameter>(type, shape));
    parameters_.back()->set_friendly_name(name);
    parameters_.back()->get_output_tensor(0).set_names({name});
    return parameters_.back();
  }

  const AttentionShape& shape_;
  NodePtr pattern_;
  ov::OutputVector shared_;
  ov::ParameterVector parameters_;
};

ov::CompiledModel Compile(const AttentionShape& shape, RivalKvType type) {
  const auto precision = type == RivalKvType::kF16 ? ov::element::f16 : ov::element::u8;
  return ov::Core().compile_model(
      RivalGraph(shape).Build(), "CPU",
      {ov::hint::inference_precision(ov::element::f32), ov::hint::kv_cache_precision(precision),
       ov::hint::performance_mode(ov::hint::PerformanceMode::LATENCY), ov::num_streams(1),
       ov::hint::enable_cpu_pinning(false),
       ov::inference_num_threads(static_cast<std::int32_t>(ParallelWidth()))});
}

ov::Tensor Ints(const std::vector<std::int32_t>& values) {
  ov::Tensor tensor(ov::element::i32, ov::Shape{values.size()});
  std::copy(values.begin(), values.end(), tensor.data<std::int32_t>());
  return tensor;
}

ov::Tensor Int(std::int64_t value) {
  ov::Tensor tensor(ov::element::i32, ov::Shape{});
  *tensor.data<std::int32_t>() = static_cast<std::int32_t>(value);
  return tensor;
}

// {begin, begin + step, ...}, `count` of them.
std::vector<std::int32_t> Steps(std::int64_t begin, std::int64_t step, std::int64_t count) {
  std::vector<std::int32_t> values(static_cast<std::size_t>(count));
  for (std::int64_t i = 0; i < count; ++i)
    values[static_cast<std::size_t>(i)] = static_cast<std::int32_t>(begin + i * step);
  return values;
}

// The rows [first, first + rows) of a load's matrix.
ov::Tensor Rows(const std::vector<float>& matrix, std::int64_t width, std::int64_t first,
                std::int64_t rows) {
  ov::Tensor tensor(ov::element::f32,
                    ov::Shape{static_cast<std::size_t>(rows), static_cast<std::size_t>(width)});
  std::copy_n(matrix.begin() + first * width, rows * width, tensor.data<float>());
  return tensor;
}

// A cache's shape with its number of blocks filled in.
ov::Shape CacheShape(const ov::Output<const ov::Node>& input, std::int64_t blocks) {
  ov::PartialShape shape = input.get_partial_shape();
  if (shape.rank().is_dynamic() || shape.size() != 4) Fail("its caches are not made of blocks");
  shape[0] = blocks;
  if (shape.is_dynamic() || shape[2].get_length() < kRivalBlock)
    Fail(fmt::format("its caches have the shape {}; blocks of {} tokens were expected",
                     shape.to_string(), kRivalBlock));
  return shape.to_shape();
}

class RivalAttention final : public AttentionContender {
 public:
  RivalAttention(const AttentionLoad& load, RivalKvType type)
      : load_(load),
        blocks_(load.shape.context / kRivalBlock),
        compiled_(Compile(load.shape, type)),
        request_(compiled_.create_infer_request()) {
    facts_ = {.engine = "openvino",
              .kv_type = type == RivalKvType::kF16 ? "f16" : "u8",
              .shifts = "none",
              .threads = compiled_.get_property(ov::inference_num_threads)};
    MakeCaches();
    FillCaches();
    SetInputs();
  }

  void Run() override {
    try {
      for (const ov::Tensor& copy : block_indices_) {
        request_.set_tensor("block_indices", copy);
        request_.infer();
      }
    } catch (const std::exception& failure) {
      Fail(fmt::format("its paged attention failed: {}", BriefReason(failure)));
    }
  }

  std::vector<float> Output() const override {
    const auto last = static_cast<std::size_t>(load_.shape.layers - 1);
    const ov::Tensor out = ov::InferRequest(request_).get_output_tensor(last);
    return {out.data<const float>(), out.data<const float>() + out.get_size()};
  }

 private:
  // All copies of a layer lie in one tensor; a run's block_indices say which is meant.
  void MakeCaches() {
    const auto bytes_of = [this](const char* name) {
      const auto input = compiled_.input(name);
      return static_cast<std::int64_t>(ov::shape_size(CacheShape(input, blocks_)) *
                                       input.get_element_type().size());
    };
    facts_.bytes_per_layer = bytes_of("key_cache.0") + bytes_of("value_cache.0");
    copies_ = load_.Copies(facts_.bytes_per_layer);
    facts_.layers = copies_ * load_.shape.layers;
    for (std::int64_t i = 0; i < load_.shape.layers; ++i) {
      for (const char* name : {"key_cache", "value_cache"}) {
        const auto input = compiled_.input(fmt::format("{}.{}", name, i));
        ov::Tensor cache(input.get_element_type(), CacheShape(input, copies_ * blocks_));
        std::memset(cache.data(), 0, cache.get_byte_size());
        request_.set_tensor(input, cache);
      }
    }
  }

  // Each block is a prompt of its own, which costs no attention to the rest of the context.
  void FillCaches() {
    const AttentionShape& shape = load_.shape;
    const std::vector<float> no_queries(
        static_cast<std::size_t>(shape.context * shape.layer.query_heads * shape.layer.key_dim));
    SetTokens(no_queries, 0, shape.context);
    request_.set_tensor("past_lens", Ints(Steps(0, 0, blocks_)));
    request_.set_tensor("subsequence_begins", Ints(Steps(0, kRivalBlock, blocks_ + 1)));
    request_.set_tensor("block_indices_begins", Ints(Steps(0, 1, blocks_ + 1)));
    request_.set_tensor("max_context_len", Int(kRivalBlock));
    for (std::int64_t copy = 0; copy < copies_; ++copy)
      block_indices_.push_back(Ints(Steps(copy * blocks_, 1, blocks_)));
    Run();
  }

  void SetInputs() {
    const AttentionShape& shape = load_.shape;
    const std::int64_t past = shape.context - shape.queries;
    SetTokens(load_.q, past, shape.queries);
    request_.set_tensor("past_lens", Ints(Steps(past, 0, 1)));
    request_.set_tensor("subsequence_begins", Ints(Steps(0, shape.queries, 2)));
    request_.set_tensor("block_indices_begins", Ints(Steps(0, blocks_, 2)));
    request_.set_tensor("max_context_len", Int(shape.context));
  }

  // The tokens [first, first + count) with the first `count` rows of `q`.
  void SetTokens(const std::vector<float>& q, std::int64_t first, std::int64_t count) {
    const AttentionLayerSpec& layer = load_.shape.layer;
    request_.set_tensor("query", Rows(q, layer.query_heads * layer.key_dim, 0, count));
    request_.set_tensor("key", Rows(load_.k, layer.kv_heads * layer.key_dim, first, count));
    request_.set_tensor("value", Rows(load_.v, layer.kv_heads * layer.value_dim, first, count));
  }

  const AttentionLoad& load_;
  std::int64_t blocks_;
  std::int64_t copies_ = 0;
  ov::CompiledModel compiled_;
  ov::InferRequest request_;
  std::vector<ov::Tensor> block_indices_;  // [copies], each [blocks]
};

}  // namespace

std::unique_ptr<AttentionContender> MakeRivalAttention(const AttentionLoad& load,
                                                       RivalKvType type) {
  if (load.shape.block_size != kRivalBlock)
    Fail(fmt::format("its paged attention has blocks of {} tokens only", kRivalBlock));
  try {
    return std::make_unique<RivalAttention>(load, type);
  } catch (const Error&) {
    throw;
  } catch (const std::exception& failure) {
    Fail(fmt::format("its paged attention could not be set up: {}", BriefReason(failure)));
  }
}

}  // namespace carousel
