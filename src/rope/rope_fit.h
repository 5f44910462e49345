// SPDX-License-Identifier: Apache-2.0
// From one layer's keys at several positions to the rotation that explains them, or the reason why
// none does. No model here: rope_probe.h runs it and collects the samples.
#pragma once

#include <string>

#include "rope/pair_phases.h"
#include "rope/rope_spec.h"

namespace carousel {

enum class RotationKind { kRotation, kConstant, kUnexplained };

struct RotationFit {
  RotationKind kind = RotationKind::kUnexplained;
  LayerRope rope;                  // of kRotation; rotated_dims 0 for kConstant
  std::string reason;              // of kUnexplained: a sentence without its subject's layer
  double fitted_theta = 0.0;       // 0: the frequencies are no plain ones
  double largest_deviation = 0.0;  // relative, from PlainFrequencies of the best theta
  double largest_residual = 0.0;   // radians, of a phase from its pair's line
  // Past the trained window the rotated dimensions are zero: a table of sines ends there.
  bool ends_at_window = false;
};

// Finds the smallest rotation (fewest rotated dimensions, halves before neighbours) under which
// every sample keeps its pairs' lengths, turns by phases linear in position, and is unchanged
// elsewhere.
RotationFit FitRotation(const RotationSamples& samples);

}  // namespace carousel
