// SPDX-License-Identifier: Apache-2.0
// One pair of dimensions seen at several positions: its lengths, its phases, and the line through
// them. The arithmetic below rope_fit.h, with its model of noise.
#pragma once

#include <cstddef>
#include <cstdint>
#include <optional>
#include <span>
#include <vector>

namespace carousel {

inline constexpr double kFloatEpsilon = 0x1p-24;  // one rounding, relative
// No runtime rotates without a few roundings per component.
inline constexpr double kNoiseFloor = 4.0 * kFloatEpsilon;
// Tolerances are this many times the noise that was seen or is predicted.
inline constexpr double kNoiseMargin = 8.0;

// The same vectors seen at each position. A sample is one token's key or query in one head.
struct RotationSamples {
  std::int64_t head_dim = 0;
  std::vector<std::int64_t> positions;  // ascending; begins 0, 1
  // Positions from here on only serve to find long-context scaling.
  std::int64_t trained_window = 0;
  std::vector<float> values;  // [positions, samples, head_dim]
  // How far values at other positions are off for reasons other than rotation, relative to a
  // vector's norm; 0 where the runtime repeats itself to the last bit.
  double noise = 0.0;

  std::size_t num_samples() const {
    return values.size() / positions.size() / static_cast<std::size_t>(head_dim);
  }
  // [samples, head_dim]
  const float* at(std::size_t position_index) const {
    return values.data() + position_index * (values.size() / positions.size());
  }
  // How many of the positions lie inside the trained window; they come first.
  std::size_t num_trained() const;
};

// One pair of dimensions, all samples together. z is a sample's pair as a complex number.
struct PairPhases {
  double magnitude = 0.0;       // root of the samples' sum of squares at position 0
  std::vector<double> phase;    // [positions], arg of sum conj(z(0)) z(p), in (-pi, pi]
  std::vector<double> stretch;  // [positions], change of lengths, relative to magnitude
  std::vector<double> length;   // [positions], root of the samples' sum of squares

  // Too small at position 0 to be told from noise of this magnitude, and still so at position j.
  bool dead(double noise_magnitude, std::size_t j) const {
    return magnitude <= noise_magnitude && length[j] <= 2.0 * noise_magnitude;
  }
};

PairPhases MeasurePair(const RotationSamples& samples, std::size_t dim_x, std::size_t dim_y);

// A position at which a pair leaves the line that the smaller positions gave.
struct PhaseBreak {
  std::size_t pair = 0;
  std::size_t position_index = 0;
  double frequency = 0.0;  // until the position before
  double implied = 0.0;    // by this position alone
};

struct PhaseLine {
  double frequency = 0.0;         // radians per token
  double sigma = 0.0;             // of the frequency, predicted from the noise
  double largest_residual = 0.0;  // radians
  std::optional<PhaseBreak> broken;
};

// Fits phase = frequency * position by weighted least squares, from small positions to large: each
// one is unwrapped by the frequency known so far, and must lie on the line within what noise
// allows. `noise` is of a phase, in radians; positions[0, 2) are 0 and 1.
PhaseLine FitPhaseLine(std::span<const std::int64_t> positions, std::span<const double> phases,
                       double noise);

}  // namespace carousel
