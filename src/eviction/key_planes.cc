// SPDX-License-Identifier: Apache-2.0
#include "eviction/key_planes.h"

#include <algorithm>
#include <cmath>

#include "eviction/query_statistics.h"

namespace carousel {

void MeanTokenScores(std::span<const double> tokens, std::span<double> scores) {
  const std::size_t block_size = scores.empty() ? 0 : tokens.size() / scores.size();
  for (std::size_t i = 0; i < scores.size(); ++i) {
    double sum = 0.0;
    for (std::size_t slot = 0; slot < block_size; ++slot) sum += tokens[i * block_size + slot];
    scores[i] = sum / static_cast<double>(block_size);
  }
}

KeyPlanes::KeyPlanes(const GroupView& view, const BlockShape& shape, const LayerRope& rope,
                     std::int64_t head, Scale scale)
    : block_size_(static_cast<std::size_t>(shape.block_size)),
      key_dim_(static_cast<std::size_t>(shape.key_dim)),
      plane_(block_size_ * key_dim_),
      keys_(view.candidates.size() * plane_) {
  std::vector<float> factor(block_size_);
  for (std::size_t i = 0; i < view.candidates.size(); ++i) {
    float* const keys = keys_.data() + i * plane_;
    const std::int64_t entry = view.candidates[i];
    view.blocks->ReadKeys(entry, head, keys);
    const auto index = static_cast<std::size_t>(entry);
    const std::int64_t move = view.attention[index] - view.entries[index].written;
    if (move != 0 && rope.rotates()) TurnKeys(rope, RotorTo(rope, move), shape.block_size, keys);
    if (scale == Scale::kAsWritten) continue;
    std::fill(factor.begin(), factor.end(), 0.0F);
    for (std::size_t j = 0; j < plane_; ++j) factor[j % block_size_] += keys[j] * keys[j];
    for (float& f : factor) f = f > 0.0F ? 1.0F / std::sqrt(f) : 0.0F;
    for (std::size_t j = 0; j < plane_; ++j) keys[j] *= factor[j % block_size_];
  }
}

void KeyPlanes::DotAll(std::size_t candidate, std::size_t slot, std::span<float> products) const {
  const float* const own = keys_.data() + candidate * plane_ + slot;
  std::fill(products.begin(), products.end(), 0.0F);
  for (std::size_t i = 0; i * plane_ < keys_.size(); ++i) {
    float* const to = products.data() + i * block_size_;
    const float* const plane = keys_.data() + i * plane_;
    for (std::size_t dim = 0; dim < key_dim_; ++dim) {
      const float factor = own[dim * block_size_];
      for (std::size_t t = 0; t < block_size_; ++t) to[t] += factor * plane[dim * block_size_ + t];
    }
  }
}

}  // namespace carousel
