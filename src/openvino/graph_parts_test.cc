// SPDX-License-Identifier: Apache-2.0
// The rewrites that make a graph faster and change nothing it computes.
#include <gmock/gmock.h>
#include <gtest/gtest.h>

#include <memory>
#include <openvino/op/ops.hpp>
#include <openvino/runtime/core.hpp>
#include <random>
#include <vector>

#include "openvino/fuse_projections.h"
#include "openvino/one_token_branch.h"

namespace carousel {
namespace {

namespace v0 = ov::op::v0;
namespace v1 = ov::op::v1;
using Out = ov::Output<ov::Node>;
using ::testing::FloatNear;
using ::testing::Pointwise;

constexpr std::size_t kDepth = 64;

// How weights of [rows, kDepth] are held.
enum class Weights { kF32, kInt8, kInt8WithZeroPoints, kInt4InGroups };

class Decoder {
 public:
  Out MakeWeights(Weights kind, std::size_t rows) {
    const ov::Shape shape = {rows, kDepth};
    switch (kind) {
      case Weights::kF32:
        return Numbers(ov::element::f32, shape, -1.0, 1.0);
      case Weights::kInt8:
        return std::make_shared<v1::Multiply>(Codes(ov::element::i8, shape),
                                              Numbers(ov::element::f32, {rows, 1}, 0.001, 0.01));
      case Weights::kInt8WithZeroPoints: {
        const auto centred = std::make_shared<v1::Subtract>(Codes(ov::element::u8, shape),
                                                            Codes(ov::element::u8, {rows, 1}));
        return std::make_shared<v1::Multiply>(centred,
                                              Numbers(ov::element::f32, {rows, 1}, 0.001, 0.01));
      }
      case Weights::kInt4InGroups: {
        const auto scaled =
            std::make_shared<v1::Multiply>(Codes(ov::element::u4, {rows, 2, kDepth / 2}),
                                           Numbers(ov::element::f32, {rows, 2, 1}, 0.001, 0.01));
        const auto target =
            v0::Constant::create(ov::element::i64, ov::Shape{2},
                                 {static_cast<std::int64_t>(rows), std::int64_t{kDepth}});
        return std::make_shared<v1::Reshape>(scaled, target, false);
      }
    }
    return {};
  }

  Out Product(const Out& rows, const Out& weights) {
    return std::make_shared<v0::MatMul>(rows, weights, false, true);
  }

  Out Numbers(ov::element::Type type, const ov::Shape& shape, double least, double most) {
    std::uniform_real_distribution<float> any(static_cast<float>(least), static_cast<float>(most));
    std::vector<float> values(ov::shape_size(shape));
    for (float& value : values) value = any(generator_);
    return v0::Constant::create(type, shape, values);
  }

 private:
  Out Codes(ov::element::Type type, const ov::Shape& shape) {
    const double most = type == ov::element::i8 ? 127.0 : type == ov::element::u8 ? 255.0 : 15.0;
    const Out codes = Numbers(type, shape, type == ov::element::i8 ? -127.0 : 0.0, most);
    return std::make_shared<v0::Convert>(codes, ov::element::f32);
  }

  std::mt19937 generator_{7};
};

std::shared_ptr<v0::Parameter> RowsInput() {
  return std::make_shared<v0::Parameter>(ov::element::f32, ov::PartialShape{-1, kDepth});
}

std::vector<std::vector<float>> Outputs(const std::shared_ptr<ov::Model>& model) {
  ov::InferRequest request = ov::Core()
                                 .compile_model(model, "CPU",
                                                {ov::hint::inference_precision(ov::element::f32),
                                                 ov::hint::dynamic_quantization_group_size(0)})
                                 .create_infer_request();
  ov::Tensor rows(ov::element::f32, {3, kDepth});
  for (std::size_t i = 0; i < rows.get_size(); ++i)
    rows.data<float>()[i] = static_cast<float>(i % 17) * 0.1F - 0.8F;
  request.set_input_tensor(rows);
  request.infer();
  std::vector<std::vector<float>> outputs;
  for (std::size_t i = 0; i < model->get_results().size(); ++i) {
    const ov::Tensor out = request.get_output_tensor(i);
    outputs.emplace_back(out.data<const float>(), out.data<const float>() + out.get_size());
  }
  return outputs;
}

std::int64_t CountProducts(const ov::Model& model) {
  std::int64_t count = 0;
  for (const auto& node : model.get_ordered_ops()) count += ov::is_type<v0::MatMul>(node) ? 1 : 0;
  return count;
}

class FuseProjectionsTest : public ::testing::TestWithParam<Weights> {};

TEST_P(FuseProjectionsTest, OneProductGivesWhatThreeGave) {
  Decoder decoder;
  const auto rows = RowsInput();
  ov::ResultVector results;
  for (const std::size_t width : {48, 16, 16}) {
    results.push_back(std::make_shared<v0::Result>(
        decoder.Product(rows, decoder.MakeWeights(GetParam(), width))));
  }
  const auto model = std::make_shared<ov::Model>(results, ov::ParameterVector{rows});
  const auto want = Outputs(model->clone());
  EXPECT_EQ(FuseProjections(*model), 3);
  model->validate_nodes_and_infer_types();
  EXPECT_EQ(CountProducts(*model), 1);
  const auto got = Outputs(model);
  ASSERT_EQ(got.size(), want.size());
  for (std::size_t i = 0; i < got.size(); ++i)
    EXPECT_THAT(got[i], Pointwise(FloatNear(1e-5F), want[i])) << "output " << i;
}

INSTANTIATE_TEST_SUITE_P(EveryKind, FuseProjectionsTest,
                         ::testing::Values(Weights::kF32, Weights::kInt8,
                                           Weights::kInt8WithZeroPoints, Weights::kInt4InGroups));

TEST(FuseProjections, LeavesProductsThatDifferOrAreJoinedWithTheirReaders) {
  Decoder decoder;
  const auto rows = RowsInput();
  const auto other = RowsInput();
  const auto weights = [&](Weights kind) { return decoder.MakeWeights(kind, 16); };
  const auto plain = [&](const Out& from) { return decoder.Product(from, weights(Weights::kF32)); };
  const Out bias = decoder.Numbers(ov::element::f32, {1, 16}, 0.0, 1.0);
  const std::vector<ov::OutputVector> cases = {
      {plain(rows), decoder.Product(rows, weights(Weights::kInt8))},
      {plain(rows), plain(other)},
      {std::make_shared<v1::Add>(plain(rows), bias), plain(rows)},
      {std::make_shared<ov::op::v4::Swish>(plain(rows)), plain(rows)},
      {plain(rows), std::make_shared<v0::MatMul>(
                        rows, decoder.Numbers(ov::element::f32, {kDepth, 16}, 0.0, 1.0))},
  };
  for (std::size_t i = 0; i < cases.size(); ++i) {
    const auto model = std::make_shared<ov::Model>(cases[i], ov::ParameterVector{rows, other});
    EXPECT_EQ(FuseProjections(*model), 0) << "case " << i;
    EXPECT_EQ(CountProducts(*model), 2) << "case " << i;
  }
}

// Numbers to their sums with a running index: [T] and [R] to [T, R].
std::shared_ptr<ov::Model> MakeTwoInputModel() {
  const auto first = std::make_shared<v0::Parameter>(ov::element::i64, ov::PartialShape{-1});
  const auto second = std::make_shared<v0::Parameter>(ov::element::i64, ov::PartialShape{-1});
  const auto scale = std::make_shared<v0::Parameter>(ov::element::i64, ov::PartialShape{});
  first->get_output_tensor(0).set_names({"first"});
  second->get_output_tensor(0).set_names({"second"});
  scale->get_output_tensor(0).set_names({"scale"});
  const auto axis = v0::Constant::create(ov::element::i64, ov::Shape{1}, {1});
  const auto column = std::make_shared<v0::Unsqueeze>(first, axis);
  const auto sum = std::make_shared<v1::Add>(column, second);
  const auto result = std::make_shared<v0::Result>(std::make_shared<v1::Multiply>(sum, scale));
  result->get_output_tensor(0).set_names({"sums"});
  return std::make_shared<ov::Model>(ov::ResultVector{result},
                                     ov::ParameterVector{first, second, scale});
}

TEST(OneTokenBranch, KnowsItsShapesAndGivesTheSame) {
  const auto model = WithOneTokenBranch(MakeTwoInputModel());
  std::shared_ptr<ov::op::v8::If> branch;
  for (const auto& node : model->get_ordered_ops()) {
    if (const auto found = ov::as_type_ptr<ov::op::v8::If>(node)) branch = found;
  }
  ASSERT_NE(branch, nullptr);
  EXPECT_EQ(branch->get_then_body()->get_results()[0]->get_output_partial_shape(0),
            (ov::PartialShape{1, 1}));
  EXPECT_TRUE(branch->get_else_body()->get_results()[0]->get_output_partial_shape(0).is_dynamic());

  ov::CompiledModel compiled = ov::Core().compile_model(model, "CPU");
  ov::InferRequest request = compiled.create_infer_request();
  const auto run = [&](const std::vector<std::int64_t>& first,
                       const std::vector<std::int64_t>& second, bool is_one) {
    const auto tensor = [](const std::vector<std::int64_t>& values) {
      ov::Tensor result(ov::element::i64, {values.size()});
      std::copy(values.begin(), values.end(), result.data<std::int64_t>());
      return result;
    };
    ov::Tensor scale(ov::element::i64, ov::Shape{});
    *scale.data<std::int64_t>() = 3;
    ov::Tensor flag(ov::element::boolean, ov::Shape{1});
    *flag.data<bool>() = is_one;
    request.set_tensor("first", tensor(first));
    request.set_tensor("second", tensor(second));
    request.set_tensor("scale", scale);
    request.set_tensor(kOneTokenInput, flag);
    request.infer();
    const ov::Tensor out = request.get_tensor("sums");
    return std::vector<std::int64_t>(out.data<std::int64_t>(),
                                     out.data<std::int64_t>() + out.get_size());
  };
  using Sums = std::vector<std::int64_t>;
  EXPECT_EQ(run({5}, {7}, true), (Sums{36}));
  EXPECT_EQ(run({1, 2}, {10, 20, 30}, false), (Sums{33, 63, 93, 36, 66, 96}));
  EXPECT_EQ(run({5}, {7}, false), (Sums{36}));
  EXPECT_EQ(run({4}, {}, false), (Sums{}));
  EXPECT_EQ(run({6}, {7}, true), (Sums{39}));
}

}  // namespace
}  // namespace carousel
