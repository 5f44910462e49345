// SPDX-License-Identifier: Apache-2.0
// What a model's files claim about RoPE against what the probe found.
#pragma once

#include "carousel/model.h"
#include "rope/rope_probe.h"

namespace carousel {

// Throws carousel::Error (kModel, "model") with both values when a layer turns otherwise than
// `spec` declares it: other frequencies, more or fewer of them, or none. Layers that the probe
// refused, and models that declare nothing, pass.
void CheckDeclaredRope(const ModelSpec& spec, const RopeProbeResult& probe);

// The probe's layers with their frequencies freed of what measuring them has added: those that the
// files declare where the measured ones agree with them within the probe's error, else an earlier
// layer's where they agree with those. So layers that turn alike have equal rotations, at every
// start. No layer is refused (CHECKed).
RopeSpec SnapToDeclared(const ModelSpec& spec, const RopeProbeResult& probe);

}  // namespace carousel
