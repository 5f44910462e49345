// SPDX-License-Identifier: Apache-2.0
// What the engine asks of a model. src/openvino implements it for OpenVINO IR; embedders bring
// their own.
#pragma once

#include <cstdint>
#include <span>
#include <string>
#include <string_view>
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
  // What a probe of this very model found before (Model::KeepRope); empty: nothing that is known.
  std::string known_rope;
  bool one_sequence_per_step = false;  // the graph asks how long the context is
  std::vector<AttentionLayerSpec> layers;
};

// Rows [first_row, first_row + rows) of a step: consecutive tokens of one sequence.
struct RowRange {
  std::int64_t first_row = 0;
  std::int64_t rows = 0;
};

// One step's input: rows of one or more sequences, each sequence's one after another. A model may
// run more rows than these, for a runtime that is better off with few different sizes: they come
// last and are padding, which attention ignores; it returns logits of the wanted rows alone.
struct ForwardInput {
  std::span<const TokenId> token_ids;          // [tokens]
  std::span<const std::int64_t> position_ids;  // [tokens], written positions
  std::span<const std::int64_t> logit_rows;    // which rows' logits are wanted, ascending
  std::span<const RowRange> sequences;         // together all rows, in order; empty: all are one's
  // The model runs at least so many rows, and as many of the logits, so that passes of fewer rows
  // round alike. 0: as it likes. What rounds alike whatever it is given may ignore this.
  std::int64_t least_rows = 0;
};

// The engine's attention, called by the model once per layer and step, layers in ascending order,
// with the step's rows. The engine CHECKs layers and rows.
class AttentionCallback {
 public:
  virtual ~AttentionCallback() = default;
  // q [rows, H * key_dim], k [rows, Hkv * key_dim] (both after RoPE), v [rows, Hkv * value_dim];
  // writes out [rows, H * value_dim]. All are owned by the model and valid during the call only.
  // `rows` are the step's, or those and padding, of which nothing is read or written.
  virtual void Attend(std::int64_t layer, std::int64_t rows, const float* q, const float* k,
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
  // Told what a probe of its RoPE has found. A model that has a place for it keeps it, and has it
  // in ModelSpec::known_rope when it is loaded the next time, for as long as it is the same model:
  // then it is not probed again.
  virtual void KeepRope(std::string_view /*found*/) noexcept {}
};

}  // namespace carousel
