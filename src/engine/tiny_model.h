// SPDX-License-Identifier: Apache-2.0
// A tiny deterministic decoder in plain loops: the engine's tests and an embedder's first steps
// need no runtime.
#pragma once

#include <cstdint>
#include <vector>

#include "carousel/model.h"
#include "rope/rope_spec.h"

namespace carousel {

struct TinyModelOptions {
  std::int64_t layers = 2;
  std::int64_t query_heads = 4;
  std::int64_t kv_heads = 2;
  std::int64_t key_dim = 16;
  std::int64_t value_dim = 16;
  std::int64_t width = 32;  // of the hidden state
  std::int64_t vocabulary_size = 61;
  std::int64_t trained_window = 512;
  Pairing pairing = Pairing::kHalves;
  double rope_theta = 1000.0;                // 0: no RoPE
  std::vector<std::int64_t> sliding_window;  // per layer; empty: none
  bool alibi = false;
  bool absolute_positions = false;  // added to the embedding: a model that no rotation can serve
  std::vector<TokenId> end_tokens;
  std::uint64_t seed = 1;
};

// Pre-norm transformer with random weights: RMS norm, attention with grouped heads, a gated
// feed-forward part, tied embeddings. All arithmetic in float32, RoPE through
// RotateVectorReference.
class TinyModel final : public Model {
 public:
  explicit TinyModel(const TinyModelOptions& options);
  const ModelSpec& spec() const override { return spec_; }
  std::span<const float> Forward(const ForwardInput& input, AttentionCallback& attention) override;

 private:
  struct Layer {
    std::vector<float> query, key, value, output, gate, up, down;  // row-major, [outputs, inputs]
  };
  void Attention(std::int64_t index, const ForwardInput& input, AttentionCallback& attention);
  void FeedForward(const Layer& layer, std::int64_t tokens);

  TinyModelOptions options_;
  ModelSpec spec_;
  LayerRope rope_;
  std::vector<float> embedding_;  // [vocabulary_size, width]
  std::vector<Layer> layers_;
  std::vector<float> hidden_;  // [tokens, width]
  std::vector<float> logits_;  // [rows, vocabulary_size]
};

}  // namespace carousel
