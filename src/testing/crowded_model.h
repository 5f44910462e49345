// SPDX-License-Identifier: Apache-2.0
// A model whose results for a row hang on the pass that the row is in, as they do where products
// are computed otherwise by their size. It also notes what passes it was given.
#pragma once

#include <algorithm>
#include <cstdint>
#include <memory>
#include <span>
#include <utility>
#include <vector>

#include "carousel/model.h"

namespace carousel {

enum class Crowding {
  kByCount,       // of the pass's rows, padding included
  kByPlace,       // of the row in the pass
  kByNeighbours,  // by their values
};

struct PassShape {
  std::int64_t tokens = 0;
  std::int64_t sequences = 0;
  std::int64_t least_rows = 0;
  friend bool operator==(const PassShape&, const PassShape&) = default;
};

class CrowdedModel final : public Model {
 public:
  // `passes`, which may be null, outlives this and gets a line for each pass.
  CrowdedModel(std::unique_ptr<Model> model, Crowding crowding,
               std::vector<PassShape>* passes = nullptr)
      : model_(std::move(model)), crowding_(crowding), passes_(passes) {}
  const ModelSpec& spec() const override { return model_->spec(); }

  std::span<const float> Forward(const ForwardInput& input, AttentionCallback& attention) override {
    if (passes_ != nullptr) {
      passes_->push_back({.tokens = std::ssize(input.token_ids),
                          .sequences = std::ssize(input.sequences),
                          .least_rows = input.least_rows});
    }
    Crowd crowd(this, input.least_rows, &attention);
    return model_->Forward(input, crowd);
  }

 private:
  class Crowd final : public AttentionCallback {
   public:
    Crowd(const CrowdedModel* model, std::int64_t least_rows, AttentionCallback* attention)
        : model_(*model), least_rows_(least_rows), attention_(*attention) {}
    void Attend(std::int64_t layer, std::int64_t rows, const float* q, const float* k,
                const float* v, float* out) override {
      attention_.Attend(layer, rows, q, k, v, out);
      const AttentionLayerSpec& spec = model_.spec().layers[static_cast<std::size_t>(layer)];
      const std::int64_t q_width = spec.query_heads * spec.key_dim;
      const std::int64_t out_width = spec.query_heads * spec.value_dim;
      const float largest = *std::max_element(q, q + rows * q_width);
      for (std::int64_t row = 0; row < rows; ++row) {
        float cause = largest;
        if (model_.crowding_ == Crowding::kByCount)
          cause = static_cast<float>(std::max(rows, least_rows_));
        if (model_.crowding_ == Crowding::kByPlace) cause = static_cast<float>(row);
        for (float* x = out + row * out_width; x < out + (row + 1) * out_width; ++x)
          *x *= 1.0F + 1e-3F * cause;
      }
    }

   private:
    const CrowdedModel& model_;
    std::int64_t least_rows_;
    AttentionCallback& attention_;
  };

  std::unique_ptr<Model> model_;
  Crowding crowding_;
  std::vector<PassShape>* passes_;
};

}  // namespace carousel
