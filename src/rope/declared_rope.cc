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

// Graphs hold frequencies, and compute angles, in float.
constexpr double kFloatError = 1e-6;

double Farthest(const ModelSpec& spec) {
  return static_cast<double>(spec.trained_window > 0 ? spec.trained_window : kUnknownTrainedWindow);
}

// Whether measured frequencies are the given ones, as closely as the probe can tell.
bool AreEqual(const LayerRopeFinding& finding, const std::vector<double>& frequencies,
              double farthest) {
  const std::vector<double>& measured = finding.rope.frequencies;
  if (measured.size() != frequencies.size()) return false;
  for (std::size_t pair = 0; pair < measured.size(); ++pair) {
    const double allowed =
        kFloatError * frequencies[pair] + 4.0 * finding.largest_residual / farthest;
    if (!(std::abs(measured[pair] - frequencies[pair]) <= allowed)) return false;
  }
  return true;
}

// What the files say of a layer that rotates; empty: nothing.
std::vector<double> DeclaredFrequencies(const ModelSpec& spec, std::size_t layer,
                                        std::int64_t rotated_dims) {
  if (!spec.declared_rope.empty()) return spec.declared_rope[layer].frequencies;
  if (spec.declared_rope_theta > 0.0)
    return PlainFrequencies(spec.declared_rope_theta, rotated_dims);
  return {};
}

bool SameGeometry(const LayerRope& left, const LayerRope& right) {
  return left.pairing == right.pairing && left.first_dim == right.first_dim &&
         left.rotated_dims == right.rotated_dims;
}

}  // namespace

RopeSpec SnapToDeclared(const ModelSpec& spec, const RopeProbeResult& probe) {
  RopeSpec snapped = probe.spec();
  const double farthest = Farthest(spec);
  for (std::size_t layer = 0; layer < snapped.layers.size(); ++layer) {
    LayerRope& rope = snapped.layers[layer];
    if (!rope.rotates()) continue;
    const std::vector<double> declared = DeclaredFrequencies(spec, layer, rope.rotated_dims);
    if (!declared.empty() && AreEqual(probe.layers[layer], declared, farthest)) {
      rope.frequencies = declared;
      continue;
    }
    const auto end = snapped.layers.begin() + static_cast<std::ptrdiff_t>(layer);
    const auto alike = std::find_if(snapped.layers.begin(), end, [&](const LayerRope& earlier) {
      return SameGeometry(earlier, rope) &&
             AreEqual(probe.layers[layer], earlier.frequencies, farthest);
    });
    if (alike != end) rope.frequencies = alike->frequencies;
  }
  return snapped;
}

void CheckDeclaredRope(const ModelSpec& spec, const RopeProbeResult& probe) {
  if (spec.declared_rope.empty()) {
    if (spec.declared_rope_theta > 0.0) CheckTheta(spec.declared_rope_theta, probe);
    return;
  }
  if (spec.declared_rope.size() != probe.layers.size()) {
    Disagree("layers", fmt::format("{}", probe.layers.size()),
             fmt::format("{}", spec.declared_rope.size()));
  }
  const double farthest = Farthest(spec);
  for (std::size_t layer = 0; layer < probe.layers.size(); ++layer) {
    CheckLayer(spec.declared_rope[layer], probe.layers[layer], layer, farthest);
  }
}

}  // namespace carousel
