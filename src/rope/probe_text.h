// SPDX-License-Identifier: Apache-2.0
// What a probe has found, as text that can be kept beside the model.
#pragma once

#include <optional>
#include <string>
#include <string_view>

#include "carousel/model.h"
#include "rope/rope_probe.h"

namespace carousel {

// A header line, the whole's verdict and reason, then a line for each layer and one for its reason.
// Numbers are written so that they come back bit for bit.
std::string ProbeText(const RopeProbeResult& probe);

// The inverse. nullopt for anything else, and for what cannot be of this model: another number of
// layers, more rotated dimensions than a head has, frequencies that are no finite numbers.
std::optional<RopeProbeResult> ParseProbeText(std::string_view text, const ModelSpec& spec);

struct RopeOfModel {
  RopeProbeResult probe;
  bool was_known = false;  // from an earlier probe of the same model
};

// What the model says is known of it, or what a probe finds now, which the model is told.
RopeOfModel KnownOrProbedRope(Model& model);

}  // namespace carousel
