// SPDX-License-Identifier: Apache-2.0
// A model for tests that says what it is told, and fails when it is told.
#pragma once

#include <algorithm>
#include <cstddef>
#include <deque>
#include <functional>
#include <utility>
#include <vector>

#include "carousel/model.h"
#include "engine/tiny_model.h"

namespace carousel {

// The tiny model, whose logits name the next token of a script as long as there is one.
class ScriptedModel final : public Model {
 public:
  // What it nearly says instead of each token of the script.
  static constexpr TokenId kRival = 'q';

  explicit ScriptedModel(const TinyModelOptions& options) : model_(options) {}

  const ModelSpec& spec() const override { return model_.spec(); }

  std::span<const float> Forward(const ForwardInput& input, AttentionCallback& attention) override {
    if (before_step) before_step(input);
    read_.insert(read_.end(), input.token_ids.begin(), input.token_ids.end());
    const std::span<const float> logits = model_.Forward(input, attention);
    if (script.empty() || input.logit_rows.empty()) return logits;
    logits_.assign(logits.size(), 0.0F);
    const std::size_t last = logits.size() - static_cast<std::size_t>(spec().vocabulary_size);
    logits_[last + kRival] = 8.0F;
    logits_[last + static_cast<std::size_t>(script.front())] = 10.0F;
    script.pop_front();
    return logits_;
  }

  // One token a step, so that prompts have to be read in one.
  std::deque<TokenId> script;
  // Called before each forward; may throw, or raise a signal.
  std::function<void(const ForwardInput&)> before_step;
  // All tokens that were given to it.
  const std::vector<TokenId>& read() const { return read_; }

 private:
  TinyModel model_;
  std::vector<TokenId> read_;
  std::vector<float> logits_;
};

}  // namespace carousel
