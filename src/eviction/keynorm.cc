// SPDX-License-Identifier: Apache-2.0
// Keys of a low L2 norm stay: they are the ones that attention goes to. Devoto et al. 2024, "A
// Simple and Effective L2 Norm-Based Strategy for KV Cache Compression". Of a block, and of the
// KV heads of a group, the mean.
#include <cmath>

#include "eviction/key_planes.h"
#include "eviction/registry.h"

namespace carousel {
namespace {

class KeyNorm final : public Policy {
 public:
  explicit KeyNorm(const PolicyContext& context) : shape_(context.shape) {}

  std::unique_ptr<Policy> Clone() const override { return std::make_unique<KeyNorm>(*this); }
  std::int64_t CountedQueries(const PolicyStep& /*step*/) const override { return 0; }
  void Observe(const Observation& /*observation*/) override {}

  void Score(const GroupView& view, std::span<double> scores) override {
    const auto block_size = static_cast<std::size_t>(shape_.block_size);
    std::vector<double> tokens(view.candidates.size() * block_size);
    ScoreTokens(view, tokens);
    MeanTokenScores(tokens, scores);
  }

  void ScoreTokens(const GroupView& view, std::span<double> scores) override {
    const auto block_size = static_cast<std::size_t>(shape_.block_size);
    std::vector<float> keys(static_cast<std::size_t>(shape_.key_dim) * block_size);
    std::vector<double> squares(block_size);
    std::fill(scores.begin(), scores.end(), 0.0);
    for (std::size_t i = 0; i < view.candidates.size(); ++i) {
      for (std::int64_t head = 0; head < shape_.kv_heads; ++head) {
        view.blocks->ReadKeys(view.candidates[i], head, keys.data());
        std::fill(squares.begin(), squares.end(), 0.0);
        for (std::size_t j = 0; j < keys.size(); ++j)
          squares[j % block_size] += static_cast<double>(keys[j]) * static_cast<double>(keys[j]);
        for (std::size_t slot = 0; slot < block_size; ++slot)
          scores[i * block_size + slot] -=
              std::sqrt(squares[slot]) / static_cast<double>(shape_.kv_heads);
      }
    }
  }

  void Erase(std::span<const std::int64_t> /*entries*/) override {}
  void Insert(std::int64_t /*entry*/) override {}
  void Clear() override {}

 private:
  BlockShape shape_;
};

}  // namespace

PolicyEntry KeyNormPolicy() {
  return {.name = "keynorm",
          .summary = "keys of a low L2 norm stay (Devoto et al. 2024)",
          .make = [](const PolicyContext& context) { return std::make_unique<KeyNorm>(context); }};
}

}  // namespace carousel
