// SPDX-License-Identifier: Apache-2.0
// Your own model on an endless stream. This one is a toy: one layer of attention over random
// vectors, so the words that it writes mean nothing. A real model computes its queries, keys and
// values from weights, and has many layers.
#include <algorithm>
#include <cmath>
#include <cstdio>
#include <memory>
#include <random>
#include <vector>

#include "carousel/error.h"
#include "carousel/single_sequence_engine.h"

constexpr std::int64_t kWords = 50;
constexpr std::int64_t kDim = 16;

class ToyModel final : public carousel::Model {
 public:
  ToyModel() : vectors_(kWords * kDim) {
    spec_ = {.name = "toy", .vocabulary_size = kWords, .trained_window = 256};
    // One query head and one KV head of kDim dimensions, and the scale of their product.
    spec_.layers = {{"attention", 1, 1, kDim, kDim, 0.25F}};
    std::mt19937 generator(1);
    for (float& x : vectors_) x = std::normal_distribution<float>()(generator);
  }
  const carousel::ModelSpec& spec() const override { return spec_; }

  std::span<const float> Forward(const carousel::ForwardInput& input,
                                 carousel::AttentionCallback& attention) override {
    const std::size_t tokens = input.token_ids.size();
    std::vector<float> keys(tokens * kDim), values(tokens * kDim), out(tokens * kDim);
    for (std::size_t i = 0; i < tokens; ++i) {
      const float* vector = &vectors_[input.token_ids[i] * kDim];
      std::copy_n(vector, kDim, &values[i * kDim]);
      Rotate(vector, static_cast<double>(input.position_ids[i]), &keys[i * kDim]);
    }
    // The engine keeps keys and values, evicts, and attends; here queries are what keys are.
    attention.Attend(0, static_cast<std::int64_t>(tokens), keys.data(), keys.data(), values.data(),
                     out.data());
    logits_.assign(input.logit_rows.size() * kWords, 0.0F);
    for (std::size_t row = 0; row < input.logit_rows.size(); ++row)
      for (std::int64_t i = 0; i < kWords * kDim; ++i)
        logits_[row * kWords + i / kDim] +=
            vectors_[i] * out[input.logit_rows[row] * kDim + i % kDim];
    return logits_;
  }

 private:
  // RoPE: each pair of dimensions turns by its own angle per position.
  static void Rotate(const float* from, double position, float* to) {
    for (std::int64_t i = 0; i < kDim / 2; ++i) {
      const double angle = position * std::pow(1000.0, -2.0 * i / kDim);
      const double c = std::cos(angle), s = std::sin(angle), x = from[i], y = from[i + kDim / 2];
      to[i] = static_cast<float>(x * c - y * s);
      to[i + kDim / 2] = static_cast<float>(x * s + y * c);
    }
  }
  carousel::ModelSpec spec_;
  std::vector<float> vectors_;  // [kWords, kDim]
  std::vector<float> logits_;   // [rows, kWords]
};

int main() try {
  carousel::EngineConfig config{.chunk_size = 32};
  config.cache.block_size = 8;
  config.eviction->start_size = 8;
  config.eviction->recent_size = 16;
  config.eviction->max_cache_size = 64;
  const auto engine = carousel::SingleSequenceEngine::Create(std::make_unique<ToyModel>(), config);
  engine->Submit({.prompt = {1, 2, 3}, .max_new_tokens = 10'000, .sampling = {.temperature = 1.0}});
  while (engine->HasWork()) {
    const carousel::StepResult step = engine->Step();
    if (engine->metrics().logical_tokens % 2'000 == 0)
      std::printf("%ld tokens, %ld of them in the cache; word %d\n",
                  engine->metrics().logical_tokens, engine->metrics().resident_tokens,
                  step.sampled ? step.sampled->token : -1);
  }
} catch (const carousel::Error& error) {
  std::fprintf(stderr, "%s\n", error.what());
  return 1;
}
