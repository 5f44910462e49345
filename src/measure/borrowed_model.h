// SPDX-License-Identifier: Apache-2.0
// One model for several engines, one after another: real models take seconds to load.
#pragma once

#include <span>

#include "carousel/model.h"

namespace carousel {

class BorrowedModel : public Model {
 public:
  // `model` outlives this.
  explicit BorrowedModel(Model* model) : model_(model) {}
  const ModelSpec& spec() const override { return model_->spec(); }
  std::span<const float> Forward(const ForwardInput& input, AttentionCallback& attention) override {
    return model_->Forward(input, attention);
  }

 private:
  Model* model_;
};

}  // namespace carousel
