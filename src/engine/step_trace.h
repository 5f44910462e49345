// SPDX-License-Identifier: Apache-2.0
// What a sequence's forward pass leaves behind: read by the commit, dropped when the step fails.
// Nothing that lasts changes before the commit, so a step that fails has not been.
#pragma once

#include <cstdint>
#include <vector>

#include "base/aligned_buffer.h"

namespace carousel {

// A layer's queries, keys and values of one sequence, as the model gave them, for policies that
// want them: [tokens, H * key_dim], [tokens, Hkv * key_dim], [tokens, Hkv * value_dim].
struct LayerVectors {
  AlignedBuffer<float> q;
  AlignedBuffer<float> k;
  AlignedBuffer<float> v;
};

struct StepTrace {
  // [stages][groups][blocks * block_size]: attention mass by token; empty where no query is
  // counted. There may be more than the step has stages, which keep their memory.
  std::vector<std::vector<std::vector<float>>> token_mass;
  std::vector<LayerVectors> vectors;  // [layers]
  std::vector<bool> attended;         // [layers]: the model has asked for it

  void Begin(std::int64_t layers, std::int64_t groups, std::int64_t stages) {
    if (std::ssize(token_mass) < stages) token_mass.resize(static_cast<std::size_t>(stages));
    for (auto& stage : token_mass) stage.resize(static_cast<std::size_t>(groups));
    vectors.resize(static_cast<std::size_t>(layers));
    attended.assign(static_cast<std::size_t>(layers), false);
  }
};

}  // namespace carousel
