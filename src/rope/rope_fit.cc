// SPDX-License-Identifier: Apache-2.0
#include "rope/rope_fit.h"

#include <fmt/format.h>

#include <algorithm>
#include <cmath>
#include <limits>
#include <optional>
#include <span>

#include "base/check.h"

namespace carousel {
namespace {

// bf16 rounds to 2^-9; some such roundings one after another still make a (coarse) rotation.
constexpr double kLargestNoise = 0x1p-6;
// A theta explains frequencies that are all this close to its own.
constexpr double kPlainDeviation = 1e-3;

// A candidate for the layer's rotation: where pairs lie, without frequencies.
struct Geometry {
  Pairing pairing = Pairing::kHalves;
  std::size_t first_dim = 0;
  std::size_t rotated_dims = 0;

  std::size_t num_pairs() const { return rotated_dims / 2; }
  std::size_t dim_x(std::size_t pair) const {
    return first_dim + (pairing == Pairing::kHalves ? pair : 2 * pair);
  }
  std::size_t dim_y(std::size_t pair) const {
    return dim_x(pair) + (pairing == Pairing::kHalves ? num_pairs() : 1);
  }
  bool contains(std::size_t dim) const {
    return dim >= first_dim && dim < first_dim + rotated_dims;
  }
};

// All that contain every changing dimension, smallest first.
std::vector<Geometry> Hypotheses(const std::vector<bool>& changes) {
  std::vector<Geometry> hypotheses;
  const std::size_t head_dim = changes.size();
  for (std::size_t rotated = 2; rotated <= head_dim; rotated += 2) {
    for (const std::size_t first : {std::size_t{0}, head_dim - rotated}) {
      for (const Pairing pairing : {Pairing::kHalves, Pairing::kNeighbours}) {
        const Geometry geometry{pairing, first, rotated};
        bool contains_all = true;
        for (std::size_t dim = 0; dim < head_dim; ++dim) {
          contains_all = contains_all && (!changes[dim] || geometry.contains(dim));
        }
        // Two dimensions are the same pair in either pairing.
        const bool duplicate = rotated == 2 && pairing == Pairing::kNeighbours;
        if (contains_all && !duplicate) hypotheses.push_back(geometry);
      }
      if (rotated == head_dim) break;  // both places are one
    }
  }
  return hypotheses;
}

double RootMeanSquare(const RotationSamples& samples) {
  double sum = 0.0;
  const std::size_t count = samples.num_samples() * static_cast<std::size_t>(samples.head_dim);
  for (std::size_t i = 0; i < count; ++i) {
    sum += static_cast<double>(samples.values[i]) * static_cast<double>(samples.values[i]);
  }
  return std::sqrt(sum / static_cast<double>(std::max<std::size_t>(count, 1)));
}

// Which dimensions differ from position 0 at any of the positions [begin, end) by more than noise.
std::vector<bool> ChangingDims(const RotationSamples& samples, std::size_t begin, std::size_t end) {
  const std::size_t head_dim = static_cast<std::size_t>(samples.head_dim);
  const double count = static_cast<double>(samples.num_samples());
  const double absolute = kNoiseMargin * samples.noise * RootMeanSquare(samples);
  std::vector<bool> changes(head_dim, false);
  for (std::size_t dim = 0; dim < head_dim; ++dim) {
    for (std::size_t j = begin; j < end && !changes[dim]; ++j) {
      double change = 0.0;
      double square = 0.0;
      for (std::size_t s = 0; s < samples.num_samples(); ++s) {
        const double before = samples.at(0)[s * head_dim + dim];
        const double difference = samples.at(j)[s * head_dim + dim] - before;
        change += difference * difference;
        square += before * before;
      }
      const double allowed = kNoiseFloor * kNoiseFloor * square + absolute * absolute * count;
      changes[dim] = !(change <= allowed);
    }
  }
  return changes;
}

// The position of the first value that is not a number, for a message.
std::optional<std::int64_t> FirstNotFinite(const RotationSamples& samples) {
  const auto found = std::find_if(samples.values.begin(), samples.values.end(),
                                  [](float value) { return !std::isfinite(value); });
  if (found == samples.values.end()) return std::nullopt;
  const std::size_t per_position = samples.values.size() / samples.positions.size();
  return samples.positions[static_cast<std::size_t>(found - samples.values.begin()) / per_position];
}

// One hypothesis put to the test.
struct Trial {
  bool lengths_hold = false;
  RotationFit fit;
  // [pairs], of the frequencies; infinite for a pair that is too small to measure.
  std::vector<double> sigma;
};

std::string StretchReason(const Geometry& geometry, std::size_t pair, double stretch,
                          std::int64_t position) {
  return fmt::format(
      "keys change their length with position: dimensions {} and {} by {:.2g} of it at position {}",
      geometry.dim_x(pair), geometry.dim_y(pair), stretch, position);
}

std::string BreakReason(const RotationSamples& samples, const PhaseBreak& broken) {
  const std::int64_t before = samples.positions[broken.position_index - 1];
  const std::int64_t at = samples.positions[broken.position_index];
  const char* what =
      at >= samples.trained_window
          ? "past the trained window the frequencies change (dynamic or long-context scaling)"
          : "frequencies depend on the position (dynamic or long-context scaling?)";
  return fmt::format(
      "{}: pair {} turns by {:.6g} radians per token up to position {}, by {:.6g} at position {}",
      what, broken.pair, broken.frequency, before, broken.implied, at);
}

// Measures all pairs of a geometry. Empty `broken` when every length holds inside the trained
// window.
std::vector<PairPhases> MeasurePairs(const RotationSamples& samples, const Geometry& geometry,
                                     double dead_magnitude, std::string* broken) {
  std::vector<PairPhases> pairs;
  for (std::size_t i = 0; i < geometry.num_pairs(); ++i) {
    pairs.push_back(MeasurePair(samples, geometry.dim_x(i), geometry.dim_y(i)));
    const PairPhases& pair = pairs.back();
    for (std::size_t j = 1; j < samples.num_trained(); ++j) {
      if (!pair.dead(dead_magnitude, j) && !(pair.stretch[j] <= kLargestNoise)) {
        *broken = StretchReason(geometry, i, pair.stretch[j], samples.positions[j]);
        return pairs;
      }
    }
  }
  return pairs;
}

// What rounding does to each pair. Lengths show it apart from rotation; a pair whose lengths happen
// to show little is taken to be as noisy as the median.
std::vector<double> PairNoise(const std::vector<PairPhases>& pairs, std::size_t num_trained) {
  std::vector<double> noise;
  for (const PairPhases& pair : pairs) {
    noise.push_back(*std::max_element(
        pair.stretch.begin(), pair.stretch.begin() + static_cast<std::ptrdiff_t>(num_trained)));
  }
  std::vector<double> sorted = noise;
  const auto middle = sorted.begin() + static_cast<std::ptrdiff_t>(sorted.size() / 2);
  std::nth_element(sorted.begin(), middle, sorted.end());
  for (double& value : noise) value = std::max({value, *middle, kNoiseFloor});
  return noise;
}

// Past the window a model may only go on as before, or end (a table of sines that has no more
// rows). Returns how many positions count for the phases; sets `fit.reason` when it does something
// else.
std::size_t CheckPastWindow(const RotationSamples& samples, const Geometry& geometry,
                            const std::vector<PairPhases>& pairs, double dead_magnitude,
                            RotationFit& fit) {
  const std::size_t num_trained = samples.num_trained();
  for (std::size_t j = num_trained; j < samples.positions.size(); ++j) {
    const bool all_zero = std::all_of(pairs.begin(), pairs.end(), [&](const PairPhases& pair) {
      return pair.dead(dead_magnitude, j) || pair.length[j] <= kLargestNoise * pair.magnitude;
    });
    if (all_zero) {
      fit.ends_at_window = true;
      return j;
    }
    for (std::size_t i = 0; i < pairs.size(); ++i) {
      if (!pairs[i].dead(dead_magnitude, j) && !(pairs[i].stretch[j] <= kLargestNoise)) {
        fit.reason = "past the trained window " +
                     StretchReason(geometry, i, pairs[i].stretch[j], samples.positions[j]);
        return j;
      }
    }
    const std::vector<bool> changes = ChangingDims(samples, j, j + 1);
    for (std::size_t dim = 0; dim < changes.size(); ++dim) {
      if (!changes[dim] || geometry.contains(dim)) continue;
      fit.reason =
          fmt::format("past the trained window, at position {}, dimension {} begins to change",
                      samples.positions[j], dim);
      return j;
    }
  }
  return samples.positions.size();
}

// Fits every pair's line. On failure the reason names the first position at which one breaks and,
// there, the slowest pair that does: its phase has no whole turns that could hide.
void FitLines(const RotationSamples& samples, const std::vector<PairPhases>& pairs,
              std::size_t num_positions, double dead_magnitude, Trial& trial) {
  const std::vector<double> noise = PairNoise(pairs, samples.num_trained());
  const auto positions = std::span(samples.positions).first(num_positions);
  std::optional<PhaseBreak> worst;
  for (std::size_t i = 0; i < pairs.size(); ++i) {
    if (pairs[i].magnitude <= dead_magnitude) {
      trial.fit.rope.frequencies.push_back(0.0);
      trial.sigma.push_back(std::numeric_limits<double>::infinity());
      continue;
    }
    PhaseLine line =
        FitPhaseLine(positions, std::span(pairs[i].phase).first(num_positions), noise[i]);
    if (line.broken) {
      line.broken->pair = i;
      const bool earlier = !worst || line.broken->position_index < worst->position_index;
      const bool slower = worst && line.broken->position_index == worst->position_index &&
                          std::abs(line.broken->frequency) < std::abs(worst->frequency);
      if (earlier || slower) worst = line.broken;
    }
    trial.fit.rope.frequencies.push_back(line.frequency);
    trial.sigma.push_back(line.sigma);
    trial.fit.largest_residual = std::max(trial.fit.largest_residual, line.largest_residual);
  }
  if (worst) {
    trial.fit.reason = BreakReason(samples, *worst);
  } else {
    trial.fit.kind = RotationKind::kRotation;
  }
}

// The theta whose plain frequencies are nearest, relative and weighted by what is known of each.
void FitTheta(Trial& trial) {
  std::vector<double>& frequencies = trial.fit.rope.frequencies;
  const double rotated = static_cast<double>(trial.fit.rope.rotated_dims);
  double sum_xx = 0.0;
  double sum_xy = 0.0;
  for (std::size_t i = 1; i < frequencies.size(); ++i) {
    if (std::isinf(trial.sigma[i])) continue;
    if (!(frequencies[i] > 0.0)) return;
    const double x = 2.0 * static_cast<double>(i) / rotated;
    const double relative = trial.sigma[i] / frequencies[i];
    const double variance = relative * relative + kFloatEpsilon * kFloatEpsilon;
    sum_xx += x * x / variance;
    sum_xy -= x * std::log(frequencies[i]) / variance;
  }
  if (sum_xx == 0.0) return;
  const double theta = std::exp(sum_xy / sum_xx);
  if (!std::isfinite(theta) || !(theta > 0.0)) return;
  const std::vector<double> plain = PlainFrequencies(theta, trial.fit.rope.rotated_dims);
  bool explains_all = true;
  for (std::size_t i = 0; i < frequencies.size(); ++i) {
    if (std::isinf(trial.sigma[i])) continue;
    const double deviation = std::abs(frequencies[i] - plain[i]);
    trial.fit.largest_deviation = std::max(trial.fit.largest_deviation, deviation / plain[i]);
    // Keys in bf16 do not show their slowest pairs any closer than the noise.
    const double allowed = std::max(kPlainDeviation * plain[i], kNoiseMargin * trial.sigma[i]);
    explains_all = explains_all && deviation <= allowed;
  }
  if (!explains_all) return;
  trial.fit.fitted_theta = theta;
  // A pair that is zero in every key and query turns unseen: the others' law holds for it too.
  for (std::size_t i = 0; i < frequencies.size(); ++i) {
    if (std::isinf(trial.sigma[i])) frequencies[i] = plain[i];
  }
}

Trial Try(const RotationSamples& samples, const Geometry& geometry) {
  Trial trial;
  // Components below this are all noise. Without noise only zero is too small to turn visibly.
  const double dead_magnitude = kNoiseMargin * kNoiseMargin * samples.noise *
                                RootMeanSquare(samples) *
                                std::sqrt(static_cast<double>(samples.num_samples()));
  const std::vector<PairPhases> pairs =
      MeasurePairs(samples, geometry, dead_magnitude, &trial.fit.reason);
  if (!trial.fit.reason.empty()) return trial;
  trial.lengths_hold = true;
  const std::size_t num_positions =
      CheckPastWindow(samples, geometry, pairs, dead_magnitude, trial.fit);
  if (!trial.fit.reason.empty()) return trial;
  trial.fit.rope.pairing = geometry.pairing;
  trial.fit.rope.first_dim = static_cast<std::int64_t>(geometry.first_dim);
  trial.fit.rope.rotated_dims = static_cast<std::int64_t>(geometry.rotated_dims);
  FitLines(samples, pairs, num_positions, dead_magnitude, trial);
  if (trial.fit.kind == RotationKind::kRotation) FitTheta(trial);
  return trial;
}

}  // namespace

RotationFit FitRotation(const RotationSamples& samples) {
  CAROUSEL_CHECK_GE(samples.positions.size(), 2U);
  CAROUSEL_CHECK_EQ(samples.positions[0], 0);
  CAROUSEL_CHECK_EQ(samples.positions[1], 1);
  CAROUSEL_CHECK_GT(samples.trained_window, 1);
  CAROUSEL_CHECK_EQ(samples.values.size(), samples.positions.size() * samples.num_samples() *
                                               static_cast<std::size_t>(samples.head_dim));
  RotationFit refused;
  if (const std::optional<std::int64_t> position = FirstNotFinite(samples)) {
    refused.reason = fmt::format("keys at position {} are not finite", *position);
    return refused;
  }
  const std::size_t num_trained = samples.num_trained();
  const std::vector<bool> changes = ChangingDims(samples, 0, num_trained);
  const bool changes_inside = std::find(changes.begin(), changes.end(), true) != changes.end();
  const std::vector<bool> past = ChangingDims(samples, num_trained, samples.positions.size());
  if (!changes_inside) {
    if (std::find(past.begin(), past.end(), true) == past.end()) {
      RotationFit constant;
      constant.kind = RotationKind::kConstant;
      return constant;
    }
    refused.reason = fmt::format("keys begin to change past the trained window of {} positions",
                                 samples.trained_window);
    return refused;
  }
  // Of the refusals the most telling is that of the first hypothesis under which lengths hold.
  bool lengths_held = false;
  for (const Geometry& geometry : Hypotheses(changes)) {
    Trial trial = Try(samples, geometry);
    if (trial.fit.kind == RotationKind::kRotation) return trial.fit;
    if (refused.reason.empty() || (trial.lengths_hold && !lengths_held)) {
      refused.reason = trial.fit.reason;
      lengths_held = trial.lengths_hold;
    }
  }
  if (refused.reason.empty()) {
    refused.reason = "keys change with position in all dimensions of a head of odd size";
  }
  return refused;
}

}  // namespace carousel
