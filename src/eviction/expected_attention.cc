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
#include <limits>
#include <numeric>

#include "eviction/query_statistics.h"
#include "eviction/registry.h"

namespace carousel {
namespace {

// Every so manieth query of the stream is a sample: neighbours say much the same, and the stream's
// first tokens, whose queries are like no others, are left out.
constexpr std::int64_t kSampleEvery = 8;

class ExpectedAttention final : public Policy {
 public:
  explicit ExpectedAttention(const PolicyContext& context)
      : shape_(context.shape),
        rope_(context.rope),
        scale_(static_cast<double>(context.scale)),
        heads_(static_cast<std::size_t>(context.query_heads),
               QueryStatistics(context.shape.key_dim)),
        average_(AverageRotation(context.rope, context.config.expected_positions)) {}

  std::unique_ptr<Policy> Clone() const override {
    return std::make_unique<ExpectedAttention>(*this);
  }
  std::int64_t CountedQueries(const PolicyStep& /*step*/) const override { return 0; }
  bool WantsVectors() const override { return true; }
  void Observe(const Observation& observation) override;
  void Score(const GroupView& view, std::span<double> scores) override;
  void ScoreTokens(const GroupView& view, std::span<double> scores) override;
  void Erase(std::span<const std::int64_t> /*entries*/) override {}
  void Insert(std::int64_t /*entry*/) override {}
  void Clear() override {
    for (QueryStatistics& head : heads_) head.Clear();
  }
  std::int64_t bytes() const override {
    std::int64_t bytes = BytesOf(average_);
    for (const QueryStatistics& head : heads_) bytes += head.bytes();
    for (const std::vector<float>& samples : samples_) bytes += BytesOf(samples);
    return bytes;
  }

 private:
  std::vector<Rotor> KeyRotors(const GroupView& view) const;
  void AddExpectedMass(const GroupView& view, const std::vector<Rotor>& rotors,
                       std::int64_t kv_head, std::span<double> mass);

  BlockShape shape_;
  LayerRope rope_;
  double scale_;
  std::vector<QueryStatistics> heads_;       // [query_heads]
  Rotor average_;                            // A of the next positions
  std::vector<std::vector<float>> samples_;  // [query_heads], of a step: [n, key_dim]
};

void ExpectedAttention::Observe(const Observation& observation) {
  samples_.resize(heads_.size());
  for (std::vector<float>& samples : samples_) samples.clear();
  const std::int64_t first = observation.first_logical.value;
  for (std::int64_t token = kSampleEvery - 1 - first % kSampleEvery; token < observation.tokens;
       token += kSampleEvery) {
    const float* row = observation.q + token * observation.q_stride;
    const Rotor back = RotorTo(rope_, -(observation.first_written.value + token));
    for (std::vector<float>& samples : samples_) {
      samples.insert(samples.end(), row, row + shape_.key_dim);
      TurnVector(rope_, back, samples.data() + samples.size() - shape_.key_dim);
      row += shape_.key_dim;
    }
  }
  for (std::size_t head = 0; head < heads_.size(); ++head) heads_[head].Add(samples_[head]);
}

// mass[t] += the expected part of attention that token t of all entries gets, summed over the KV
// head's query heads. [entries * block_size]; what is not filled gets nothing. `rotors` take each
// entry's keys to where the queries' distribution stands.
void ExpectedAttention::AddExpectedMass(const GroupView& view, const std::vector<Rotor>& rotors,
                                        std::int64_t kv_head, std::span<double> mass) {
  const auto block_size = static_cast<std::size_t>(shape_.block_size);
  const auto per_kv_head = static_cast<std::int64_t>(heads_.size()) / shape_.kv_heads;
  std::vector<QueryForm> forms;
  for (std::int64_t i = 0; i < per_kv_head; ++i)
    forms.push_back(
        heads_[static_cast<std::size_t>(kv_head * per_kv_head + i)].Expectation(scale_));
  std::vector<float> keys(static_cast<std::size_t>(shape_.key_dim) * block_size);
  std::vector<std::vector<float>> exponents(forms.size(), std::vector<float>(mass.size()));
  for (std::size_t entry = 0; entry < view.entries.size(); ++entry) {
    view.blocks->ReadKeys(static_cast<std::int64_t>(entry), kv_head, keys.data());
    const auto filled = static_cast<std::size_t>(view.entries[entry].tokens);
    // What was never written may be anything.
    for (std::size_t i = 0; i < keys.size(); ++i) {
      if (i % block_size >= filled) keys[i] = 0.0F;
    }
    TurnKeys(rope_, rotors[entry], shape_.block_size, keys.data());
    for (std::size_t i = 0; i < forms.size(); ++i) {
      const auto to = std::span(exponents[i]).subspan(entry * block_size, block_size);
      EvaluateForm(forms[i], keys, to);
      std::fill(to.begin() + static_cast<std::ptrdiff_t>(filled), to.end(),
                -std::numeric_limits<float>::infinity());
    }
  }
  for (const std::vector<float>& head : exponents) {
    const float most = *std::max_element(head.begin(), head.end());
    std::vector<double> weights;
    for (const float e : head) weights.push_back(std::exp(static_cast<double>(e - most)));
    const double sum = std::accumulate(weights.begin(), weights.end(), 0.0);
    for (std::size_t t = 0; t < head.size(); ++t) mass[t] += weights[t] / sum;
  }
}

// Key R(a) k stands at v: query R(next + j) q meets it at the distance next + j - v, so that
// (A m) . k over the next positions is m . k', with k' the key turned by the conjugate of A.
std::vector<Rotor> ExpectedAttention::KeyRotors(const GroupView& view) const {
  std::vector<Rotor> rotors;
  for (std::size_t entry = 0; entry < view.entries.size(); ++entry) {
    const std::int64_t distance =
        view.next_attention - view.attention[entry] + view.entries[entry].written.value;
    Rotor& rotor = rotors.emplace_back(RotorTo(rope_, distance));
    for (std::size_t pair = 0; pair < rotor.size(); ++pair)
      rotor[pair] = std::conj(rotor[pair] * average_[pair]);
  }
  return rotors;
}

void ExpectedAttention::ScoreTokens(const GroupView& view, std::span<double> scores) {
  std::fill(scores.begin(), scores.end(), 0.0);
  const auto block_size = static_cast<std::size_t>(shape_.block_size);
  const auto value_dim = static_cast<std::size_t>(shape_.value_dim);
  std::vector<double> mass(view.entries.size() * block_size);
  std::vector<float> values(block_size * value_dim);
  const std::vector<Rotor> rotors = KeyRotors(view);
  for (std::int64_t head = 0; head < shape_.kv_heads; ++head) {
    std::fill(mass.begin(), mass.end(), 0.0);
    AddExpectedMass(view, rotors, head, mass);
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
