// SPDX-License-Identifier: Apache-2.0
// Small random decoders as OpenVINO IR, built like exports of real models: stateful key/value
// caches, ScaledDotProductAttention, a mask from the graph. Tests load them from a folder as they
// would a real model.
#pragma once

#include <cstdint>
#include <filesystem>
#include <memory>
#include <openvino/core/model.hpp>
#include <optional>
#include <vector>

namespace carousel::testing {

enum class TinyPairing { kHalves, kNeighbours };

enum class TinyScaling {
  kNone,
  kLinear,  // positions divided by `factor` (Chen et al. 2023)
  kLlama3,  // low frequencies divided by `factor`, a smooth step between (Llama 3.1)
  kYarn,    // ramp between interpolation and extrapolation, and an attention factor (Peng et al.
            // 2023)
  kDynamicNtk,         // theta grows with the last position once it is past the trained window
  kDynamicNtkByCache,  // likewise, with the length read off the cache's shape
  kDynamicNtkByMask,   // likewise, with the length read off the input attention_mask
};

// How the mask is written down; every form but kCausal is one that SDPAToPagedAttention knows.
enum class TinyMask {
  kCausal,
  kSlidingGptOss,   // kv > q - window, joined with four logical ands, as gpt-oss exports have it
  kSlidingUnknown,  // the same window, in a form that the pass does not see
  kAlibi,           // slopes * kv position, as Bloom exports have it
  kBidirectional,   // everything sees everything: to be refused
  kChunked,         // tokens see back to the last multiple of the window: to be refused
  kSquareBias,      // a bias by squared distance: to be refused
};

struct TinyDecoderOptions {
  std::int64_t layers = 2;
  std::int64_t vocabulary_size = 97;
  std::int64_t hidden_size = 32;
  std::int64_t query_heads = 4;
  std::int64_t kv_heads = 2;
  std::int64_t key_dim = 16;
  std::int64_t value_dim = 16;
  TinyPairing pairing = TinyPairing::kHalves;
  std::int64_t first_dim = 0;
  std::int64_t rotated_dims = 16;
  std::vector<double> layer_theta = {
      10000.0};  // one per layer, or one for all; 0: that layer has no RoPE
  TinyScaling scaling = TinyScaling::kNone;
  double factor = 4.0;
  std::int64_t trained_window = 256;
  std::vector<TinyMask> layer_mask = {TinyMask::kCausal};  // one per layer, or one for all
  std::int64_t sliding_window = 0;
  bool has_sinks = false;
  std::optional<double> scale;  // of the dot products; absent: the graph leaves it to the operation
  bool has_soft_capped_logits = false;
  double soft_cap = 0.0;             // of attention scores, written into the masks; 0: none
  bool caps_other_scores = false;    // of scores that are not the attention's: to be refused
  bool scale_from_input = false;     // a scale that is not a constant: to be refused
  bool has_recurrent_state = false;  // a state that is not attention's: to be refused
  bool has_half_weights = false;  // constants as f16, converted in the graph, as exports have them
  std::uint64_t seed = 1;
};

// The RoPE frequencies that layer `layer` is built with, at positions inside the trained window.
std::vector<double> TinyFrequencies(const TinyDecoderOptions& options, std::int64_t layer);
// What its cos and sin are multiplied by.
double TinyAttentionFactor(const TinyDecoderOptions& options);
// [query_heads], of kAlibi layers.
std::vector<float> TinyAlibiSlopes(const TinyDecoderOptions& options);

std::shared_ptr<ov::Model> BuildTinyDecoder(const TinyDecoderOptions& options);

// Writes openvino_model.xml, openvino_model.bin and config.json into `directory`, which is made.
void SaveTinyDecoder(const TinyDecoderOptions& options, const std::filesystem::path& directory);

}  // namespace carousel::testing
