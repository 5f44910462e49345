// SPDX-License-Identifier: Apache-2.0
// What RoPE a model applies, layer by layer (Su et al. 2021, "RoFormer"; docs/architecture.md).
#pragma once

#include <cstdint>
#include <vector>

namespace carousel {

// Which two of a head's dimensions form one rotated pair.
enum class Pairing {
  kHalves,      // (i, i + rotated_dims / 2), as rotate_half does
  kNeighbours,  // (2 i, 2 i + 1)
};

// One layer's rotation. A key at position p is the rotation of the same key at position 0 by the
// angle p * frequencies[i] in each pair i. Dimensions outside [first_dim, first_dim + rotated_dims)
// never change.
struct LayerRope {
  Pairing pairing = Pairing::kHalves;
  std::int64_t first_dim = 0;
  std::int64_t rotated_dims = 0;    // even; 0: the layer does not rotate
  std::vector<double> frequencies;  // [rotated_dims / 2], radians per token
  // cos and sin are multiplied by this in the model (YaRN). It is in the keys already, so rotating
  // a key further never applies it again. Declared by the model's files; a probe cannot see it.
  double attention_factor = 1.0;

  bool rotates() const { return rotated_dims > 0; }
  friend bool operator==(const LayerRope&, const LayerRope&) = default;
};

struct RopeSpec {
  std::vector<LayerRope> layers;
};

// theta^(-2 i / rotated_dims) for each pair: the plain frequencies of RoFormer.
std::vector<double> PlainFrequencies(double theta, std::int64_t rotated_dims);

}  // namespace carousel
