// SPDX-License-Identifier: Apache-2.0
// A model whose logits go bad at some token, as a damaged or overflowing one's do.
#pragma once

#include <cstdint>
#include <limits>
#include <memory>
#include <span>
#include <utility>
#include <vector>

#include "carousel/model.h"

namespace carousel {

struct Poison {
  std::int64_t after_tokens = 0;  // that have been read since `active`; no row before is touched
  float logit = std::numeric_limits<float>::quiet_NaN();
  std::int64_t words = 1;  // how many of the vocabulary, from `first_word` on, get that logit
  std::int64_t first_word = 0;
  bool active = false;  // off while an engine probes the model
};

class PoisonedModel : public Model {
 public:
  // `poison` outlives this, and may be changed between steps.
  PoisonedModel(std::unique_ptr<Model> model, const Poison* poison)
      : model_(std::move(model)), poison_(poison) {}
  const ModelSpec& spec() const override { return model_->spec(); }

  std::span<const float> Forward(const ForwardInput& input, AttentionCallback& attention) override {
    const std::span<const float> logits = model_->Forward(input, attention);
    if (!poison_->active) return logits;
    logits_.assign(logits.begin(), logits.end());
    for (std::size_t row = 0; row < input.logit_rows.size(); ++row) {
      if (tokens_ + input.logit_rows[row] + 1 < poison_->after_tokens) continue;
      const std::int64_t first =
          static_cast<std::int64_t>(row) * spec().vocabulary_size + poison_->first_word;
      for (std::int64_t i = first; i < first + poison_->words; ++i)
        logits_[static_cast<std::size_t>(i)] = poison_->logit;
    }
    tokens_ += static_cast<std::int64_t>(input.token_ids.size());
    return logits_;
  }

 private:
  std::unique_ptr<Model> model_;
  const Poison* poison_;
  std::int64_t tokens_ = 0;
  std::vector<float> logits_;
};

}  // namespace carousel
