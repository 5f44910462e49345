// SPDX-License-Identifier: Apache-2.0
// A model whose forward pass fails at a layer, before or after that layer's attention.
#pragma once

#include <cstdint>
#include <memory>
#include <optional>
#include <span>
#include <utility>

#include "carousel/error.h"
#include "carousel/model.h"

namespace carousel {

struct Failure {
  std::optional<std::int64_t> layer;  // of the next pass; nullopt: it does not fail
  bool after_attention = false;
  std::int64_t least_tokens = 0;  // passes of fewer do not fail
};

class FailingModel final : public Model {
 public:
  // `failure` outlives this, and may be changed between steps.
  FailingModel(std::unique_ptr<Model> model, const Failure* failure)
      : model_(std::move(model)), failure_(failure) {}
  const ModelSpec& spec() const override { return model_->spec(); }

  std::span<const float> Forward(const ForwardInput& input, AttentionCallback& attention) override {
    if (std::ssize(input.token_ids) < failure_->least_tokens)
      return model_->Forward(input, attention);
    Interruption interruption(failure_, &attention);
    return model_->Forward(input, interruption);
  }

 private:
  class Interruption final : public AttentionCallback {
   public:
    Interruption(const Failure* failure, AttentionCallback* attention)
        : failure_(failure), attention_(attention) {}
    void Attend(std::int64_t layer, std::int64_t rows, const float* q, const float* k,
                const float* v, float* out) override {
      if (failure_->layer == layer && !failure_->after_attention) Fail();
      attention_->Attend(layer, rows, q, k, v, out);
      if (failure_->layer == layer) Fail();
    }

   private:
    [[noreturn]] static void Fail() {
      throw Error(ErrorCode::kModel, "model", "this pass was to fail");
    }

    const Failure* failure_;
    AttentionCallback* attention_;
  };

  std::unique_ptr<Model> model_;
  const Failure* failure_;
};

}  // namespace carousel
