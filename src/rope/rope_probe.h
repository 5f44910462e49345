// SPDX-License-Identifier: Apache-2.0
// Finds out what RoPE a model applies by running it, so that nobody has to claim it
// (docs/architecture.md).
//
// With one token of context, attention returns that token's value whatever its position, so each
// layer's hidden state is independent of position and its key at position p is exactly R(p) k. The
// ratios of keys at positions 0, 1, 4, ... give pairing, rotated dimensions and frequencies.
#pragma once

#include <cstdint>
#include <string>
#include <vector>

#include "carousel/model.h"
#include "rope/rope_spec.h"

namespace carousel {

enum class RopeVerdict {
  kRotates,        // keys form a rotation group: rotation is exact
  kDoesNotRotate,  // keys do not depend on position (NoPE, ALiBi): rotation is not needed
  kRefused,        // keys depend on position in a way that no rotation explains
};

struct LayerRopeFinding {
  RopeVerdict verdict = RopeVerdict::kRefused;
  LayerRope rope;      // valid unless refused
  std::string reason;  // one sentence; for kRefused what was seen, with numbers
  // Of PlainFrequencies, when all agree to 1e-3 relative or to what noise lets one see; 0: scaled
  // or special.
  double fitted_theta = 0;
  double largest_deviation = 0;  // relative, of the frequencies from that fit
  double largest_residual =
      0;  // radians, between measured and linear phase over all probed positions
};

struct RopeProbeResult {
  RopeVerdict verdict = RopeVerdict::kRefused;  // the worst layer's; kRotates if any layer rotates
                                                // and none is refused
  std::string reason;  // for people: what was found, or the first refusal with its layer
  std::vector<LayerRopeFinding> layers;
  RopeSpec spec() const;  // CHECKs that no layer is refused
};

// Where the trained window is taken to end when nothing says it.
inline constexpr std::int64_t kUnknownTrainedWindow = 8192;

struct RopeProbeOptions {
  // Tokens whose keys are read; several, so that a small component in one is large in another.
  std::vector<TokenId> tokens;  // empty: spread over the vocabulary
  // Where the trained window ends; scaling that sets in past it is looked for at twice this. 0:
  // unknown, kUnknownTrainedWindow.
  std::int64_t trained_window = 0;
};

// Runs the model some dozens of times with one token and no context.
RopeProbeResult ProbeRope(Model& model, const RopeProbeOptions& options);

}  // namespace carousel
