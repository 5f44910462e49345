// SPDX-License-Identifier: Apache-2.0
// Keys unlike the others stay. Park et al. 2025, "KeyDiff: Key Similarity-Based KV Cache Eviction
// for Long-Context LLM Inference in Resource-Constrained Environments": the score is minus the
// cosine similarity between a key and the mean of the normalised keys; in the paper of all keys in
// the cache, here of those that may be evicted, without the start and recent areas. It needs no
// query, so what matters to a question that has not been asked yet is kept as well as the rest; the
// paper reads prompts piece by piece under a hard cap, as this engine does. Of a block the mean.
#include <cmath>

#include "eviction/key_planes.h"
#include "eviction/registry.h"

namespace carousel {
namespace {

class KeyDiff final : public Policy {
 public:
  explicit KeyDiff(const PolicyContext& context) : shape_(context.shape), rope_(context.rope) {}

  std::unique_ptr<Policy> Clone() const override { return std::make_unique<KeyDiff>(*this); }
  std::int64_t CountedQueries(const PolicyStep& /*step*/) const override { return 0; }
  void Observe(const Observation& /*observation*/) override {}

  void Score(const GroupView& view, std::span<double> scores) override {
    const auto block_size = static_cast<std::size_t>(shape_.block_size);
    std::vector<double> tokens(view.candidates.size() * block_size);
    ScoreTokens(view, tokens);
    MeanTokenScores(tokens, scores);
  }

  void ScoreTokens(const GroupView& view, std::span<double> scores) override {
    std::fill(scores.begin(), scores.end(), 0.0);
    for (std::int64_t head = 0; head < shape_.kv_heads; ++head) ScoreHead(view, head, scores);
  }

  void Erase(std::span<const std::int64_t> /*entries*/) override {}
  void Insert(std::int64_t /*entry*/) override {}
  void Clear() override {}

 private:
  void ScoreHead(const GroupView& view, std::int64_t head, std::span<double> scores) const {
    const auto block_size = static_cast<std::size_t>(shape_.block_size);
    const auto key_dim = static_cast<std::size_t>(shape_.key_dim);
    const KeyPlanes keys(view, shape_, rope_, head, KeyPlanes::Scale::kUnit);
    std::vector<float> mean(key_dim, 0.0F);
    for (std::size_t i = 0; i < view.candidates.size(); ++i) {
      const auto plane = keys.plane(i);
      for (std::size_t j = 0; j < plane.size(); ++j) mean[j / block_size] += plane[j];
    }
    double squares = 0.0;
    for (const float m : mean) squares += static_cast<double>(m) * static_cast<double>(m);
    if (squares == 0.0) return;
    const double norm = std::sqrt(squares) * static_cast<double>(shape_.kv_heads);
    for (std::size_t i = 0; i < view.candidates.size(); ++i) {
      const auto plane = keys.plane(i);
      for (std::size_t j = 0; j < plane.size(); ++j) {
        scores[i * block_size + j % block_size] -=
            static_cast<double>(plane[j]) * static_cast<double>(mean[j / block_size]) / norm;
      }
    }
  }

  BlockShape shape_;
  LayerRope rope_;
};

}  // namespace

PolicyEntry KeyDiffPolicy() {
  return {.name = "keydiff",
          .summary = "keys unlike the others stay (KeyDiff, Park et al. 2025)",
          .make = [](const PolicyContext& context) { return std::make_unique<KeyDiff>(context); }};
}

}  // namespace carousel
