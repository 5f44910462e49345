// SPDX-License-Identifier: Apache-2.0
// A decoder from an OpenVINO IR folder, on the CPU, with the engine's attention in place of its
// own.
#pragma once

#include <cstdint>
#include <filesystem>
#include <memory>

#include "carousel/model.h"

namespace carousel {

// What the plugin computes in, attention excepted, which always gets f32.
enum class ModelPrecision {
  kF32,
  kBf16,  // faster on CPUs with AMX; elsewhere slower, or f32 all the same
  // f32, but activations are rounded to int8 in groups of 32 before they meet 4-bit or 8-bit
  // weights, on CPUs with VNNI; it is what OpenVINO does unless told not to. SmolLM2-135M: prompts
  // 1.7 times and single tokens 1.3 times as fast, perplexity 0.3 % higher, and logits that move by
  // as much as 1 when a prompt is cut into other chunks.
  kInt8Activations,
};

struct OpenVinoModelOptions {
  std::filesystem::path
      directory;  // openvino_model.xml and .bin; config.json, generation_config.json if there
  std::int64_t threads = 0;  // 0: one per core; bf16 takes two at least
  ModelPrecision precision = ModelPrecision::kF32;
};

// Reads, rewrites (graph_rewrite.h) and compiles. Throws carousel::Error (kModel, field "model")
// that names the path or the graph's node for files that are missing or damaged and for models that
// are not supported. Forward must not be called from two threads at once. The model may outlive
// everything it was made from.
std::unique_ptr<Model> LoadOpenVinoModel(const OpenVinoModelOptions& options);

}  // namespace carousel
