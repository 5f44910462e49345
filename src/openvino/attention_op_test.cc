// SPDX-License-Identifier: Apache-2.0
#include "openvino/attention_op.h"

#include <gmock/gmock.h>
#include <gtest/gtest.h>

#include <algorithm>
#include <openvino/core/type/bfloat16.hpp>
#include <openvino/op/parameter.hpp>
#include <stdexcept>
#include <vector>

namespace carousel {
namespace {

using ::testing::Each;
using ::testing::ElementsAre;

// out = first value of q + first of k + first of v, row by row.
class Summing : public AttentionCallback {
 public:
  void Attend(std::int64_t layer, std::int64_t tokens, const float* q, const float* k,
              const float* v, float* out) override {
    last_layer = layer;
    last_tokens = tokens;
    for (std::int64_t t = 0; t < tokens; ++t) {
      for (int i = 0; i < 2; ++i) out[2 * t + i] = q[4 * t] + k[2 * t] + v[t];
    }
  }
  std::int64_t last_layer = -1;
  std::int64_t last_tokens = -1;
};

class AttentionOpTest : public ::testing::Test {
 protected:
  AttentionOpTest() {
    const auto input = [](std::int64_t width) {
      return std::make_shared<ov::op::v0::Parameter>(ov::element::f32, ov::PartialShape{-1, width});
    };
    op_ = std::make_shared<AttentionOp>(
        input(4), input(2), input(1),
        AttentionOp::Attributes{.layer = 3, .output_width = 2, .slot = slot_});
    slot_->tokens = 2;
  }

  // Two rows whose first values are 1 and 2, in all three inputs.
  template <typename T>
  static ov::Tensor Input(ov::element::Type type, std::size_t width) {
    ov::Tensor tensor(type, ov::Shape{2, width});
    std::fill_n(tensor.data<T>(), tensor.get_size(), T(0.0F));
    tensor.data<T>()[0] = T(1.0F);
    tensor.data<T>()[width] = T(2.0F);
    return tensor;
  }

  template <typename T>
  std::vector<float> Evaluate(ov::element::Type type) {
    const ov::TensorVector inputs = {Input<T>(type, 4), Input<T>(type, 2), Input<T>(type, 1)};
    ov::TensorVector outputs = {ov::Tensor(type, ov::Shape{2, 2})};
    std::fill_n(outputs[0].data<T>(), 4, T(99.0F));
    EXPECT_TRUE(op_->evaluate(outputs, inputs));
    return {outputs[0].data<T>(), outputs[0].data<T>() + outputs[0].get_size()};
  }

  std::shared_ptr<AttentionSlot> slot_ = std::make_shared<AttentionSlot>();
  std::shared_ptr<AttentionOp> op_;
};

TEST_F(AttentionOpTest, OutputHasTheQuerysTokensAndItsOwnWidth) {
  EXPECT_EQ(op_->get_output_partial_shape(0), (ov::PartialShape{-1, 2}));
  EXPECT_EQ(op_->get_output_element_type(0), ov::element::f32);
}

TEST_F(AttentionOpTest, CallsWhoeverIsInTheSlot) {
  Summing summing;
  slot_->callback = &summing;
  EXPECT_THAT(Evaluate<float>(ov::element::f32), ElementsAre(3, 3, 6, 6));
  EXPECT_EQ(summing.last_layer, 3);
}

TEST_F(AttentionOpTest, ConvertsBf16OnBothSides) {
  Summing summing;
  slot_->callback = &summing;
  EXPECT_THAT(Evaluate<ov::bfloat16>(ov::element::bf16), ElementsAre(3, 3, 6, 6));
}

TEST_F(AttentionOpTest, RowsAfterTheStepsTokensAreZeroAndNotShown) {
  Summing summing;
  slot_->callback = &summing;
  slot_->tokens = 1;
  EXPECT_THAT(Evaluate<float>(ov::element::f32), ElementsAre(3, 3, 0, 0));
  EXPECT_EQ(summing.last_tokens, 1);
  EXPECT_THAT(Evaluate<ov::bfloat16>(ov::element::bf16), ElementsAre(3, 3, 0, 0));
}

TEST_F(AttentionOpTest, RowsThatDoNotBelongTogetherAreABug) {
  Summing summing;
  slot_->callback = &summing;
  ov::TensorVector outputs = {ov::Tensor(ov::element::f32, ov::Shape{2, 2})};
  const auto input = [](std::size_t width) { return Input<float>(ov::element::f32, width); };
  const ov::Tensor short_k(ov::element::f32, ov::Shape{1, 2});
  const ov::Tensor short_v(ov::element::f32, ov::Shape{1, 1});
  EXPECT_DEATH(op_->evaluate(outputs, {input(4), short_k, input(1)}), "CHECK failed.*1 vs 2");
  EXPECT_DEATH(op_->evaluate(outputs, {input(4), input(2), short_v}), "CHECK failed.*1 vs 2");
  slot_->tokens = 3;
  EXPECT_DEATH(op_->evaluate(outputs, {input(4), input(2), input(1)}), "slot.tokens");
  slot_->tokens = 0;
  EXPECT_DEATH(op_->evaluate(outputs, {input(4), input(2), input(1)}), "slot.tokens");
}

TEST_F(AttentionOpTest, WithoutACallbackTheOutputIsZero) {
  EXPECT_THAT(Evaluate<float>(ov::element::f32), Each(0.0F));
}

TEST_F(AttentionOpTest, KeepsTheExceptionAndThenDoesNothing) {
  class Throwing : public AttentionCallback {
   public:
    void Attend(std::int64_t, std::int64_t, const float*, const float*, const float*,
                float*) override {
      ++calls;
      throw std::range_error("full");
    }
    int calls = 0;
  } throwing;
  slot_->callback = &throwing;
  EXPECT_THAT(Evaluate<float>(ov::element::f32), Each(0.0F));
  EXPECT_THAT(Evaluate<float>(ov::element::f32), Each(0.0F));
  EXPECT_EQ(throwing.calls, 1);
  ASSERT_TRUE(slot_->failure);
  EXPECT_THROW(std::rethrow_exception(slot_->failure), std::range_error);
}

TEST_F(AttentionOpTest, ClonesShareTheSlot) {
  Summing summing;
  slot_->callback = &summing;
  op_ = std::static_pointer_cast<AttentionOp>(op_->clone_with_new_inputs(op_->input_values()));
  EXPECT_THAT(Evaluate<float>(ov::element::f32), ElementsAre(3, 3, 6, 6));
  EXPECT_EQ(summing.last_layer, 3);
}

}  // namespace
}  // namespace carousel
