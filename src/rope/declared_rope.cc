// SPDX-License-Identifier: Apache-2.0
#include "rope/declared_rope.h"

#include <fmt/format.h>

#include <algorithm>
#include <cmath>
#include <string>

#include "carousel/error.h"

namespace carousel {
namespace {

// Of frequencies: files round them to float, and graphs may hold theirs as halves.
constexpr double kTolerance = 1e-3;

[[noreturn]] void Disagree(const std::string& what, const std::string& measured,
                           const std::string& declared) {
  throw Error(ErrorCode::kModel, "model",
              fmt::format("{}: measured {}, but its files declare {}; the graph and the files do "
                          "not belong together, or one of them is wrong: import the model again",
                          what, measured, declared));
}

// How far two frequencies may be apart: a slow pair shows itself no closer than the phases' own
// errors over the farthest position.
double Allowed(double declared, const LayerRopeFinding& finding, double farthest) {
  return kTolerance * declared + 4.0 * finding.largest_residual / farthest;
}

void CheckLayer(const DeclaredRope& declared, const LayerRopeFinding& finding, std::size_t layer,
                double farthest) {
  if (finding.verdict == RopeVerdict::kRefused) return;
  const std::vector<double>& measured = finding.rope.frequencies;
  const std::string what = fmt::format("RoPE of layer {}", layer);
  if (measured.size() != declared.frequencies.size()) {
    Disagree(what, fmt::format("{} rotated dimensions", 2 * measured.size()),
             fmt::format("{}", 2 * declared.frequencies.size()));
  }
  for (std::size_t pair = 0; pair < measured.size(); ++pair) {
    const double want = declared.frequencies[pair];
    if (std::abs(measured[pair] - want) <= Allowed(want, finding, farthest)) continue;
    Disagree(fmt::format("{}, pair {}", what, pair),
             fmt::format("{:.8g} radians per token", measured[pair]), fmt::format("{:.8g}", want));
  }
}

// A theta alone says nothing of scaled layers, nor which layers it is of: one has to have it.
void CheckTheta(double declared, const RopeProbeResult& probe) {
  double nearest = 0.0;
  for (const LayerRopeFinding& finding : probe.layers) {
    if (finding.verdict != RopeVerdict::kRotates) continue;
    if (finding.fitted_theta <= 0.0) return;
    if (nearest == 0.0 ||
        std::abs(finding.fitted_theta - declared) < std::abs(nearest - declared)) {
      nearest = finding.fitted_theta;
    }
  }
  // The frequencies' tolerance, at the slowest pair: the power of theta nearest to one.
  if (nearest == 0.0 || std::abs(std::log(nearest / declared)) <= 2.0 * kTolerance) return;
  Disagree("RoPE's theta", fmt::format("{:.8g}", nearest), fmt::format("{:.8g}", declared));
}

}  // namespace

void CheckDeclaredRope(const ModelSpec& spec, const RopeProbeResult& probe) {
  if (spec.declared_rope.empty()) {
    if (spec.declared_rope_theta > 0.0) CheckTheta(spec.declared_rope_theta, probe);
    return;
  }
  if (spec.declared_rope.size() != probe.layers.size()) {
    Disagree("layers", fmt::format("{}", probe.layers.size()),
             fmt::format("{}", spec.declared_rope.size()));
  }
  const double farthest =
      static_cast<double>(spec.trained_window > 0 ? spec.trained_window : kUnknownTrainedWindow);
  for (std::size_t layer = 0; layer < probe.layers.size(); ++layer) {
    CheckLayer(spec.declared_rope[layer], probe.layers[layer], layer, farthest);
  }
}

}  // namespace carousel
