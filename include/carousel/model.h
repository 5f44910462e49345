// SPDX-License-Identifier: Apache-2.0
// What the engine asks of a model. src/openvino implements it for OpenVINO IR; embedders bring
// their own.
#pragma once

#include <cstdint>
#include <span>
#include <string>
#include <vector>

#include "carousel/types.h"

namespace carousel {

// Attention of one layer, as the model's graph states it.
struct AttentionLayerSpec {
  std::string name;                 // of the graph's node, for messages
  std::int64_t query_heads = 0;     // H
  std::int64_t kv_heads = 0;        // Hkv; divides H: query head h reads KV head h / (H / Hkv)
  std::int64_t key_dim = 0;         // per head, of queries and keys
  std::int64_t value_dim = 0;       // per head, of values and outputs
  float scale = 0.0F;               // of the dot product, usually 1 / sqrt(key_dim)
  std::int64_t sliding_window = 0;  // a query sees this many tokens back, itself included; 0: all
  float soft_cap = 0.0F;            // scores become soft_cap * tanh(score / soft_cap); 0: none
  std::vector<float> alibi_slopes;  // [H]: score -= slope * distance in tokens; empty: none
  std::vector<float> sinks;  // [H]: an extra logit that takes mass and has no value; empty: none
};

// How the files say a layer rotates.
struct DeclaredRope {
  std::vector<double> frequencies;  // radians per token, one per pair; empty: it does not rotate
};

struct ModelSpec {
  std::string name;
  std::string architecture;          // "llama", ...; empty when the files do not say
  std::int64_t vocabulary_size = 0;  // columns of the logits
  std::int64_t trained_window = 0;   // positions that the model was trained on; 0: unknown
  double declared_rope_theta =
      0.0;  // what the files claim; 0: nothing. Only ever compared with the probe
  double declared_attention_factor =
      1.0;  // of cos and sin (YaRN); part of keys, so it never changes a rotation
  std::vector<DeclaredRope> declared_rope;  // [layers]; empty: nothing. Compared likewise
  std::vector<TokenId> end_tokens;          // generation ends at any of these
  std::vector<AttentionLayerSpec> layers;
};

// One step's input: `token_ids.size()` consecutive tokens of one sequence. A model may run more
// rows than these, for a runtime that is better off with few different sizes; it shows the
// attention these alone and returns logits of the wanted ones alone.
struct ForwardInput {
  std::span<const TokenId> token_ids;          // [tokens]
  std::span<const std::int64_t> position_ids;  // [tokens], written positions
  std::span<const std::int64_t> logit_rows;    // which tokens' logits are wanted, ascending
};

// The engine's attention, called by the model once per layer and step, layers in ascending order,
// with the step's tokens. The engine CHECKs layers and tokens.
class AttentionCallback {
 public:
  virtual ~AttentionCallback() = default;
  // q [tokens, H * key_dim], k [tokens, Hkv * key_dim] (both after RoPE), v [tokens, Hkv *
  // value_dim]; writes out [tokens, H * value_dim]. All are owned by the model and valid during the
  // call only.
  virtual void Attend(std::int64_t layer, std::int64_t tokens, const float* q, const float* k,
                      const float* v, float* out) = 0;
};

class Model {
 public:
  virtual ~Model() = default;
  virtual const ModelSpec& spec() const = 0;
  // Runs one step. Returns logits [logit_rows.size(), vocabulary_size], owned by the model and
  // valid until the next call. Throws carousel::Error (kModel) when the runtime fails. An exception
  // thrown by `attention` passes through unchanged where the runtime allows it.
  virtual std::span<const float> Forward(const ForwardInput& input,
                                         AttentionCallback& attention) = 0;
};

}  // namespace carousel
