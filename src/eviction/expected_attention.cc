// SPDX-License-Identifier: Apache-2.0
// The attention that queries to come can be expected to pay. Devoto, Jeblick, Jegou 2025, "Expected
// Attention: KV Cache Compression by Estimating Attention from Future Queries Distribution":
// queries before RoPE are taken as normal with mean m and covariance S, the rotations of the next
// positions are averaged to one matrix A, and then
//   E exp(scale q . k) = exp(scale (A m) . k + scale^2 / 2 k' A S A' k),
// which is normalised over the cache, averaged over the query heads of a KV head, and weighted by
// the norm of the value. Here m and S are gathered step by step from a sample of the queries, and A
// takes each block to where it stands, so that the cache is read as it was written. Of a block the
// sum.
#include <algorithm>
#include <cmath>
#include <complex>

#include "eviction/query_statistics.h"
#include "eviction/registry.h"

namespace carousel {
namespace {

constexpr std::int64_t kSamplesPerStep = 32;  // queries; neighbours say much the same
constexpr std::int64_t kOutliers = 4;         // the stream's first tokens have queries of their own

class ExpectedAttention final : public Policy {
 public:
  explicit ExpectedAttention(const PolicyContext& context)
      : shape_(context.shape),
        rope_(context.rope),
        scale_(static_cast<double>(context.scale)),
        heads_(static_cast<std::size_t>(context.query_heads),
               QueryStatistics(context.shape.key_dim)),
        average_(AverageRotation(context.rope, context.config.expected_positions)) {}

  std::int64_t CountedQueries(const PolicyStep& /*step*/) const override { return 0; }
  bool WantsVectors() const override { return true; }
  void Observe(const Observation& observation) override;
  void Score(const GroupView& view, std::span<double> scores) override;
  void ScoreTokens(const GroupView& view, std::span<double> scores) override;
  void Erase(std::span<const std::int64_t> /*entries*/) override {}
  void Clear() override {
    for (QueryStatistics& head : heads_) head.Clear();
  }

 private:
  void AddExpectedMass(const GroupView& view, std::int64_t kv_head, std::span<double> mass) const;

  BlockShape shape_;
  LayerRope rope_;
  double scale_;
  std::vector<QueryStatistics> heads_;         // [query_heads]
  std::vector<std::complex<double>> average_;  // [pairs]: A of the next positions
};

void ExpectedAttention::Observe(const Observation& observation) {
  const std::int64_t samples = std::min(observation.tokens, kSamplesPerStep);
  const auto key_dim = static_cast<std::size_t>(shape_.key_dim);
  for (std::int64_t i = 0; i < samples; ++i) {
    // The last of each of `samples` equal parts.
    const std::int64_t token = (i + 1) * observation.tokens / samples - 1;
    if (observation.first_logical.value + token < kOutliers) continue;
    const float* row = observation.q + token * observation.q_stride;
    const Rotor back = RotorTo(rope_, -(observation.first_written.value + token));
    for (QueryStatistics& head : heads_) {
      head.Add(rope_, back, row);
      row += key_dim;
    }
  }
}

// mass[t] += the expected part of attention that token t of all entries gets, summed over the KV
// head's query heads. [entries * block_size]; what is not filled gets nothing.
void ExpectedAttention::AddExpectedMass(const GroupView& view, std::int64_t kv_head,
                                        std::span<double> mass) const {
  const auto block_size = static_cast<std::size_t>(shape_.block_size);
  const auto per_kv_head = static_cast<std::int64_t>(heads_.size()) / shape_.kv_heads;
  std::vector<float> keys(static_cast<std::size_t>(shape_.key_dim) * block_size);
  std::vector<std::vector<double>> exponents(
      static_cast<std::size_t>(per_kv_head),
      std::vector<double>(mass.size(), -std::numeric_limits<double>::infinity()));
  for (std::size_t entry = 0; entry < view.entries.size(); ++entry) {
    view.blocks->ReadKeys(static_cast<std::int64_t>(entry), kv_head, keys.data());
    // Key R(a) k stands at v: query R(next + j) q meets it at the distance next + j - v.
    const std::int64_t distance =
        view.next_attention - view.attention[entry] + view.entries[entry].written.value;
    Rotor rotor = RotorTo(rope_, distance);
    for (std::size_t pair = 0; pair < rotor.size(); ++pair) rotor[pair] *= average_[pair];
    const auto filled = static_cast<std::size_t>(view.entries[entry].tokens);
    for (std::int64_t i = 0; i < per_kv_head; ++i) {
      const QueryStatistics& head = heads_[static_cast<std::size_t>(kv_head * per_kv_head + i)];
      const auto to =
          std::span(exponents[static_cast<std::size_t>(i)]).subspan(entry * block_size, block_size);
      head.ExpectedExponents(rope_, rotor, scale_, keys, to);
      std::fill(to.begin() + static_cast<std::ptrdiff_t>(filled), to.end(),
                -std::numeric_limits<double>::infinity());
    }
  }
  for (const std::vector<double>& head : exponents) {
    const double most = *std::max_element(head.begin(), head.end());
    double sum = 0.0;
    for (const double e : head) sum += std::exp(e - most);
    for (std::size_t t = 0; t < head.size(); ++t) mass[t] += std::exp(head[t] - most) / sum;
  }
}

void ExpectedAttention::ScoreTokens(const GroupView& view, std::span<double> scores) {
  std::fill(scores.begin(), scores.end(), 0.0);
  const auto block_size = static_cast<std::size_t>(shape_.block_size);
  const auto value_dim = static_cast<std::size_t>(shape_.value_dim);
  std::vector<double> mass(view.entries.size() * block_size);
  std::vector<float> values(block_size * value_dim);
  for (std::int64_t head = 0; head < shape_.kv_heads; ++head) {
    std::fill(mass.begin(), mass.end(), 0.0);
    AddExpectedMass(view, head, mass);
    for (std::size_t i = 0; i < view.candidates.size(); ++i) {
      view.blocks->ReadValues(view.candidates[i], head, values.data());
      for (std::size_t slot = 0; slot < block_size; ++slot) {
        double squares = 0.0;
        for (std::size_t dim = 0; dim < value_dim; ++dim) {
          const auto value = static_cast<double>(values[slot * value_dim + dim]);
          squares += value * value;
        }
        const auto token = static_cast<std::size_t>(view.candidates[i]) * block_size + slot;
        scores[i * block_size + slot] += mass[token] * std::sqrt(squares);
      }
    }
  }
}

void ExpectedAttention::Score(const GroupView& view, std::span<double> scores) {
  const auto block_size = static_cast<std::size_t>(shape_.block_size);
  std::vector<double> tokens(view.candidates.size() * block_size);
  ScoreTokens(view, tokens);
  for (std::size_t i = 0; i < scores.size(); ++i) {
    scores[i] = 0.0;
    for (std::size_t slot = 0; slot < block_size; ++slot)
      scores[i] += tokens[i * block_size + slot];
  }
}

}  // namespace

PolicyEntry ExpectedAttentionPolicy() {
  return {.name = "expected_attention",
          .summary =
              "attention to expect of queries like those so far, times the value's norm "
              "(Devoto et al. 2025; --expected-positions)",
          .make = [](const PolicyContext& context) {
            return std::make_unique<ExpectedAttention>(context);
          }};
}

}  // namespace carousel
