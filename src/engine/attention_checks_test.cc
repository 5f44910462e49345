// SPDX-License-Identifier: Apache-2.0
// What the engine's attention refuses from a model that does not keep to its contract.
#include <gtest/gtest.h>

#include <memory>
#include <utility>

#include "carousel/single_sequence_engine.h"
#include "engine/tiny_model.h"

namespace carousel {
namespace {

// Adds to the layers or the tokens of each call.
class Misreporting : public AttentionCallback {
 public:
  Misreporting(AttentionCallback* inner, std::int64_t layers, std::int64_t tokens)
      : inner_(inner), layers_(layers), tokens_(tokens) {}
  void Attend(std::int64_t layer, std::int64_t tokens, const float* q, const float* k,
              const float* v, float* out) override {
    inner_->Attend(layer + layers_, tokens + tokens_, q, k, v, out);
  }

 private:
  AttentionCallback* inner_;
  std::int64_t layers_;
  std::int64_t tokens_;
};

class MisreportingModel : public Model {
 public:
  MisreportingModel(std::int64_t layers, std::int64_t tokens) : layers_(layers), tokens_(tokens) {}
  const ModelSpec& spec() const override { return model_.spec(); }
  std::span<const float> Forward(const ForwardInput& input, AttentionCallback& attention) override {
    Misreporting misreporting(&attention, layers_, tokens_);
    return model_.Forward(input, misreporting);
  }

 private:
  TinyModel model_{TinyModelOptions{}};
  std::int64_t layers_;
  std::int64_t tokens_;
};

void RunOneStep(std::int64_t layers, std::int64_t tokens) {
  EngineConfig config;
  config.eviction.reset();  // so that no probe runs the model before
  const auto engine = SingleSequenceEngine::Create(
      std::make_unique<MisreportingModel>(layers, tokens), std::move(config));
  engine->Submit({.prompt = {1, 2, 3, 4}, .max_new_tokens = 1});
  engine->Step();
}

TEST(AttentionChecksTest, AModelThatKeepsToItsContractPasses) { RunOneStep(0, 0); }

TEST(AttentionChecksTest, LayersAreThoseOfTheSpec) {
  EXPECT_DEATH(RunOneStep(1, 0), "layer < .*2 vs 2");
  EXPECT_DEATH(RunOneStep(-1, 0), "layer >= 0 .*-1 vs 0");
}

// Rows that it lost. More than the step's are padding.
TEST(AttentionChecksTest, RowsAreAtLeastThoseOfTheStep) {
  EXPECT_DEATH(RunOneStep(0, -1), "rows >= rows_ .*3 vs 4");
  RunOneStep(0, 4);
}

}  // namespace
}  // namespace carousel
