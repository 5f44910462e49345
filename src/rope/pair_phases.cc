// SPDX-License-Identifier: Apache-2.0
#include "rope/pair_phases.h"

#include <algorithm>
#include <cmath>
#include <complex>
#include <numbers>

namespace carousel {

std::size_t RotationSamples::num_trained() const {
  return static_cast<std::size_t>(
      std::lower_bound(positions.begin(), positions.end(), trained_window) - positions.begin());
}

PairPhases MeasurePair(const RotationSamples& samples, std::size_t dim_x, std::size_t dim_y) {
  PairPhases pair;
  double square = 0.0;
  const std::size_t size = samples.values.size() / samples.positions.size();
  for (std::size_t j = 0; j < samples.positions.size(); ++j) {
    std::complex<double> product = 0.0;
    double stretch = 0.0;
    double length = 0.0;
    for (std::size_t at = 0; at < size; at += static_cast<std::size_t>(samples.head_dim)) {
      const std::complex<double> before(samples.at(0)[at + dim_x], samples.at(0)[at + dim_y]);
      const std::complex<double> after(samples.at(j)[at + dim_x], samples.at(j)[at + dim_y]);
      product += std::conj(before) * after;
      const double change = std::sqrt(std::norm(after)) - std::sqrt(std::norm(before));
      stretch += change * change;
      length += std::norm(after);
    }
    if (j == 0) square = length;
    const double scale = square > 0.0 ? 1.0 / square : 1.0;
    pair.phase.push_back(std::arg(product));
    pair.stretch.push_back(std::sqrt(stretch * scale));
    pair.length.push_back(std::sqrt(length));
  }
  pair.magnitude = std::sqrt(square);
  return pair;
}

PhaseLine FitPhaseLine(std::span<const std::int64_t> positions, std::span<const double> phases,
                       double noise) {
  PhaseLine line;
  std::vector<double> unwrapped(positions.size(), 0.0);
  double sum_xx = 0.0;
  double sum_xy = 0.0;
  for (std::size_t j = 1; j < positions.size(); ++j) {
    const double p = static_cast<double>(positions[j]);
    const double residual = std::remainder(phases[j] - line.frequency * p, 2.0 * std::numbers::pi);
    // Models compute the angle as float(position) * float(frequency).
    const double rounding = kFloatEpsilon * p * std::abs(line.frequency);
    const double tolerance = kNoiseMargin * (noise + line.sigma * p + rounding);
    // The first position, 1, has nothing before it: a whole turn per token is no turn at all, so
    // any phase is a frequency. NaN must not pass.
    if (j > 1 && !(std::abs(residual) <= tolerance)) {
      line.broken = PhaseBreak{.position_index = j,
                               .frequency = line.frequency,
                               .implied = line.frequency + residual / p};
      return line;
    }
    unwrapped[j] = line.frequency * p + residual;
    const double variance = noise * noise + rounding * rounding;
    sum_xx += p * p / variance;
    sum_xy += p * unwrapped[j] / variance;
    line.frequency = sum_xy / sum_xx;
    line.sigma = 1.0 / std::sqrt(sum_xx);
  }
  for (std::size_t j = 1; j < positions.size(); ++j) {
    const double residual = unwrapped[j] - line.frequency * static_cast<double>(positions[j]);
    line.largest_residual = std::max(line.largest_residual, std::abs(residual));
  }
  return line;
}

}  // namespace carousel
