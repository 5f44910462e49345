// SPDX-License-Identifier: Apache-2.0
// Attention as one node of the graph: hands q, k and v to the callback of the running Forward.
#pragma once

#include <cstdint>
#include <exception>
#include <memory>
#include <openvino/op/op.hpp>
#include <vector>

#include "carousel/model.h"

namespace carousel {

// Whom the attention nodes of one model call. Forward sets `callback` for the length of an
// inference; all nodes of a model share one slot. OpenVINO replaces an exception's type and text on
// the way through its plugin, so it is kept here and thrown again by Forward. After a failure the
// remaining layers do nothing.
struct AttentionSlot {
  AttentionCallback* callback = nullptr;
  std::int64_t tokens = 0;  // of the step; the graph's rows after them are padding
  std::exception_ptr failure;
};

// Inputs q [T, H * key_dim], k [T, Hkv * key_dim], v [T, Hkv * value_dim]; output [T,
// output_width], where output_width is H * value_dim. The callback is shown the first
// slot->tokens rows of T; what comes out of the others is zero. f32, or bf16 where the plugin was
// asked for that (converted on both sides). OpenVINO runs it through evaluate(), on the inference's
// own threads and on the plugin's own memory.
class AttentionOp : public ov::op::Op {
 public:
  OPENVINO_OP("Attention", "carousel")

  struct Attributes {
    std::int64_t layer = 0;
    std::int64_t output_width = 0;
    std::shared_ptr<AttentionSlot> slot;
  };

  AttentionOp() = default;
  AttentionOp(const ov::Output<ov::Node>& q, const ov::Output<ov::Node>& k,
              const ov::Output<ov::Node>& v, Attributes attributes);

  void validate_and_infer_types() override;
  std::shared_ptr<ov::Node> clone_with_new_inputs(const ov::OutputVector& inputs) const override;
  bool visit_attributes(ov::AttributeVisitor& visitor) override;
  bool has_evaluate() const override { return true; }
  bool evaluate(ov::TensorVector& outputs, const ov::TensorVector& inputs) const override;

 private:
  Attributes attributes_;
};

}  // namespace carousel
