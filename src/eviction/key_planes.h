// SPDX-License-Identifier: Apache-2.0
// The candidates' keys of one KV head as floats, for policies that compare keys. Each is turned
// from where it was written to where it stands: written positions begin anew when they are
// re-based, and keys from before and after would differ by that alone.
#pragma once

#include <cstdint>
#include <span>
#include <vector>

#include "eviction/policy.h"

namespace carousel {

// scores[i] = the mean score of candidate i's tokens. `tokens` is [scores, tokens of a block].
void MeanTokenScores(std::span<const double> tokens, std::span<double> scores);

class KeyPlanes {
 public:
  enum class Scale { kAsWritten, kUnit };  // kUnit: each key divided by its L2 norm

  KeyPlanes(const GroupView& view, const BlockShape& shape, const LayerRope& rope,
            std::int64_t head, Scale scale);

  // [key_dim, block_size] of the i-th candidate.
  std::span<const float> plane(std::size_t candidate) const {
    return std::span(keys_).subspan(candidate * plane_, plane_);
  }
  // products[t] = the dot product of one token's key and the key of token t of all candidates, in
  // order. [candidates * block_size]
  void DotAll(std::size_t candidate, std::size_t slot, std::span<float> products) const;

 private:
  std::size_t block_size_;
  std::size_t key_dim_;
  std::size_t plane_;
  std::vector<float> keys_;  // [candidates, key_dim, block_size]
};

}  // namespace carousel
