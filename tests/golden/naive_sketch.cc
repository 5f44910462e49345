// SPDX-License-Identifier: Apache-2.0
#include "golden/naive_sketch.h"

#include <algorithm>
#include <cmath>
#include <limits>
#include <utility>

#include "rope/rotate.h"

namespace carousel::testing {
namespace {

constexpr double kWayToBound = 0.4;  // from a channel's mean to its largest or smallest key
constexpr double kLargestCode = 127.0;
// By so much the engine's queries and keys may move what a sketch scores.
constexpr double kScoreDoubt = 1e-4;
// A number that is so near to the middle between two codes may have become either.
constexpr double kCodeDoubt = 2e-4;

// A number of a sketch as int8 codes hold it, and by how much that may differ in the engine.
struct SketchNumber {
  double value = 0.0;
  double doubt = 0.0;
};

// A block: of each channel what meets positive queries, and what meets negative ones.
struct Sketch {
  std::int64_t block = 0;
  double first_position = 0.0;
  std::vector<SketchNumber> upper;
  std::vector<SketchNumber> lower;
};

struct Estimate {
  std::int64_t block = 0;
  double mass = 0.0;  // and in the engine from `least` to `most`
  double least = 0.0;
  double most = 0.0;
};

std::vector<double> Turned(const LayerRope& rope, const std::vector<double>& vector, double by) {
  std::vector<double> turned(vector.size());
  RotateVectorReference(rope, by, std::ssize(vector), vector.data(), turned.data());
  return turned;
}

// In steps of the largest of all, divided by the largest code.
void RoundToCodes(std::vector<SketchNumber>* upper, std::vector<SketchNumber>* lower) {
  double largest = 0.0;
  for (const auto* side : {upper, lower})
    for (const SketchNumber& number : *side) largest = std::max(largest, std::abs(number.value));
  if (largest == 0.0) return;
  const double unit = largest / kLargestCode;
  for (auto* side : {upper, lower}) {
    for (SketchNumber& number : *side) {
      const double steps = number.value / unit;
      number.value = unit * std::round(steps);
      if (std::abs(steps - std::floor(steps) - 0.5) < kCodeDoubt) number.doubt = unit;
    }
  }
}

// `tokens` of one block.
Sketch SketchOf(const NaiveSweep& sweep, const ReferenceToken* tokens) {
  Sketch sketch{.block = tokens->logical.value / sweep.block_size,
                .first_position = static_cast<double>(tokens->attention.value),
                .upper = {},
                .lower = {}};
  std::vector<std::vector<double>> keys;
  for (std::int64_t t = 0; t < sweep.block_size; ++t) {
    const ReferenceToken& token = tokens[t];
    keys.push_back(
        Turned(*sweep.rope, token.key, static_cast<double>(token.attention - token.written)));
  }
  for (std::size_t channel = 0; channel < keys.front().size(); ++channel) {
    double sum = 0.0;
    double largest = -std::numeric_limits<double>::infinity();
    double smallest = std::numeric_limits<double>::infinity();
    for (const std::vector<double>& key : keys) {
      sum += key[channel];
      largest = std::max(largest, key[channel]);
      smallest = std::min(smallest, key[channel]);
    }
    const double mean = sum / static_cast<double>(keys.size());
    sketch.upper.push_back({.value = mean + kWayToBound * (largest - mean)});
    sketch.lower.push_back({.value = mean + kWayToBound * (smallest - mean)});
  }
  RoundToCodes(&sketch.upper, &sketch.lower);
  return sketch;
}

// What one query head's query at `position` scores, and by how much that may differ.
SketchNumber Score(const AttentionLayerSpec& spec, std::size_t head,
                   const std::vector<double>& query, double position, std::int64_t block_size,
                   const Sketch& sketch) {
  SketchNumber score{.value = 0.0, .doubt = kScoreDoubt};
  for (std::size_t channel = 0; channel < query.size(); ++channel) {
    const double factor = query[channel] * static_cast<double>(spec.scale);
    const SketchNumber& number = (factor > 0.0 ? sketch.upper : sketch.lower)[channel];
    score.value += factor * number.value;
    score.doubt += std::abs(factor) * number.doubt;
  }
  if (spec.soft_cap > 0.0F) {
    const auto cap = static_cast<double>(spec.soft_cap);
    score.value = cap * std::tanh(score.value / cap);
  }
  if (!spec.alibi_slopes.empty()) {
    const double middle = sketch.first_position + static_cast<double>(block_size - 1) / 2;
    score.value -= static_cast<double>(spec.alibi_slopes[head]) * (position - middle);
  }
  return score;
}

std::vector<Estimate> Estimates(const NaiveSweep& sweep) {
  std::vector<Sketch> sketches;
  std::vector<Estimate> estimates;
  for (auto token = sweep.tokens->begin(); token != sweep.tokens->end();
       token += sweep.block_size) {
    sketches.push_back(SketchOf(sweep, &*token));
    estimates.push_back({.block = sketches.back().block});
  }
  const AttentionLayerSpec& spec = *sweep.spec;
  for (const ReferenceQuery& query : *sweep.queries) {
    for (std::int64_t head = 0; head < spec.query_heads; ++head) {
      const auto from = query.query.begin() + head * spec.key_dim;
      const std::vector<double> turned =
          Turned(*sweep.rope, {from, from + spec.key_dim},
                 static_cast<double>(query.attention - query.written));
      std::vector<SketchNumber> scores;
      double sum = 0.0;
      for (const Sketch& sketch : sketches) {
        scores.push_back(Score(spec, static_cast<std::size_t>(head), turned,
                               static_cast<double>(query.attention.value), sweep.block_size,
                               sketch));
        sum += std::exp(scores.back().value);
      }
      for (std::size_t i = 0; i < scores.size(); ++i) {
        const double share = std::exp(scores[i].value) / sum;
        estimates[i].mass += share;
        estimates[i].least += share * std::exp(-scores[i].doubt);
        estimates[i].most += share * std::exp(scores[i].doubt);
      }
    }
  }
  return estimates;
}

}  // namespace

NaiveCandidates CandidatesBySketch(const NaiveSweep& sweep, std::int64_t wanted) {
  std::vector<Estimate> estimates = Estimates(sweep);
  std::sort(estimates.begin(), estimates.end(),
            [](const Estimate& left, const Estimate& right) { return left.mass > right.mass; });
  const auto edge = estimates.begin() + wanted;
  const double least_inside =
      std::min_element(estimates.begin(), edge, [](auto& left, auto& right) {
        return left.least < right.least;
      })->least;
  const double most_outside = std::max_element(edge, estimates.end(), [](auto& left, auto& right) {
                                return left.most < right.most;
                              })->most;
  std::vector<std::int64_t> sure;
  std::vector<std::int64_t> doubtful;  // the naive ones first
  for (auto at = estimates.begin(); at != estimates.end(); ++at) {
    const bool is_inside = at < edge;
    if (is_inside && at->least > most_outside) {
      sure.push_back(at->block);
    } else if (is_inside || at->most >= least_inside) {
      doubtful.push_back(at->block);
    }
  }
  NaiveCandidates candidates;
  std::vector<bool> taken(doubtful.size(), false);  // as many as there is room for
  std::fill_n(taken.begin(), wanted - std::ssize(sure), true);
  bool is_first = true;
  do {
    std::vector<std::int64_t> blocks = sure;
    for (std::size_t i = 0; i < doubtful.size(); ++i)
      if (taken[i]) blocks.push_back(doubtful[i]);
    if (std::exchange(is_first, false)) {
      candidates.blocks = std::move(blocks);
    } else {
      candidates.others.push_back(std::move(blocks));
    }
  } while (candidates.others.size() <= NaiveCandidates::kMostOthers &&
           std::prev_permutation(taken.begin(), taken.end()));
  return candidates;
}

}  // namespace carousel::testing
