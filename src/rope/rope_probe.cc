// SPDX-License-Identifier: Apache-2.0
#include "rope/rope_probe.h"

#include <fmt/format.h>

#include <algorithm>
#include <cmath>
#include <cstddef>
#include <limits>
#include <span>
#include <utility>

#include "base/check.h"
#include "carousel/error.h"
#include "rope/rope_fit.h"

namespace carousel {
namespace {

constexpr std::int64_t kDefaultTokens = 2;
// Values that differ by more are not the same value rounded in another order.
constexpr double kLargestValueChange = 1e-4;

// Powers of two, so that each phase is unwrapped by the ones before; a few others, so that an error
// that only powers of two hide shows; the window's last position; and one far past the window.
std::vector<std::int64_t> ProbedPositions(std::int64_t window) {
  std::vector<std::int64_t> positions = {0, 1, 3, window / 11, window / 3 + 1, window - window / 4};
  for (std::int64_t power = 2; power < window; power *= 2) positions.push_back(power);
  positions.push_back(window - 1);
  std::erase_if(positions, [&](std::int64_t position) { return position >= window; });
  positions.push_back(2 * window);
  std::sort(positions.begin(), positions.end());
  positions.erase(std::unique(positions.begin(), positions.end()), positions.end());
  return positions;
}

// What one layer showed.
struct LayerRecord {
  RotationSamples keys;                    // a sample is (token, KV head)
  RotationSamples queries;                 // a sample is (token, the first query head of a KV head)
  std::vector<std::vector<float>> values;  // [tokens][kv_heads * value_dim], at position 0
  double value_change = 0.0;               // largest, relative to the value's norm
  std::int64_t value_change_position = 0;
};

double RelativeChange(std::span<const float> before, std::span<const float> after) {
  double change = 0.0;
  double square = 0.0;
  for (std::size_t i = 0; i < before.size(); ++i) {
    const double difference = static_cast<double>(after[i]) - static_cast<double>(before[i]);
    change += difference * difference;
    square += static_cast<double>(before[i]) * static_cast<double>(before[i]);
  }
  if (change == 0.0) return 0.0;
  // Also for values that are not finite, which no comparison would find.
  const double relative = std::sqrt(change / square);
  return std::isfinite(relative) ? relative : std::numeric_limits<double>::infinity();
}

// The attention of a context of one token: its value, whatever its position. Keeps what passes by.
class Recorder : public AttentionCallback {
 public:
  explicit Recorder(const ModelSpec& spec) : spec_(spec), records_(spec.layers.size()) {}

  void Begin(std::int64_t position, std::size_t token) {
    position_ = position;
    token_ = token;
    next_layer_ = 0;
  }

  void Attend(std::int64_t layer, std::int64_t tokens, const float* q, const float* k,
              const float* v, float* out) override {
    CAROUSEL_CHECK_EQ(layer, next_layer_);
    CAROUSEL_CHECK_EQ(tokens, 1);
    ++next_layer_;
    const AttentionLayerSpec& spec = spec_.layers[static_cast<std::size_t>(layer)];
    LayerRecord& record = records_[static_cast<std::size_t>(layer)];
    const std::int64_t group = spec.query_heads / spec.kv_heads;
    record.keys.values.insert(record.keys.values.end(), k, k + spec.kv_heads * spec.key_dim);
    for (std::int64_t head = 0; head < spec.kv_heads; ++head) {
      const float* query = q + head * group * spec.key_dim;
      record.queries.values.insert(record.queries.values.end(), query, query + spec.key_dim);
    }
    CompareValue(record, std::span(v, static_cast<std::size_t>(spec.kv_heads * spec.value_dim)));
    for (std::int64_t head = 0; head < spec.query_heads; ++head) {
      const float* value = v + head / group * spec.value_dim;
      std::copy(value, value + spec.value_dim, out + head * spec.value_dim);
    }
  }

  bool complete() const { return next_layer_ == static_cast<std::int64_t>(records_.size()); }
  std::int64_t next_layer() const { return next_layer_; }
  std::vector<LayerRecord> TakeRecords() { return std::move(records_); }

  // Drops everything from the given position on: the model could not run there.
  void DropFrom(std::size_t position_index, std::size_t num_tokens) {
    for (std::size_t layer = 0; layer < records_.size(); ++layer) {
      const AttentionLayerSpec& spec = spec_.layers[layer];
      const std::size_t size =
          position_index * num_tokens * static_cast<std::size_t>(spec.kv_heads * spec.key_dim);
      records_[layer].keys.values.resize(size);
      records_[layer].queries.values.resize(size);
    }
  }

 private:
  void CompareValue(LayerRecord& record, std::span<const float> value) {
    if (position_ == 0) {
      record.values.emplace_back(value.begin(), value.end());
      return;
    }
    const double change = RelativeChange(record.values[token_], value);
    if (change > record.value_change) {
      record.value_change = change;
      record.value_change_position = position_;
    }
  }

  const ModelSpec& spec_;
  std::vector<LayerRecord> records_;
  std::int64_t position_ = 0;
  std::size_t token_ = 0;
  std::int64_t next_layer_ = 0;
};

std::vector<TokenId> TokensSpreadOver(std::int64_t vocabulary_size) {
  std::vector<TokenId> tokens;
  for (std::int64_t i = 0; i < kDefaultTokens; ++i) {
    // Not the vocabulary's end, where untrained tokens may share one embedding.
    tokens.push_back(
        static_cast<TokenId>(vocabulary_size * (2 * i + 1) / (2 * kDefaultTokens + 2)));
  }
  return tokens;
}

void RunOne(Model& model, Recorder& recorder, std::int64_t position, TokenId token,
            std::size_t index) {
  recorder.Begin(position, index);
  const ForwardInput input{
      .token_ids = std::span(&token, 1), .position_ids = std::span(&position, 1), .logit_rows = {}};
  model.Forward(input, recorder);
  if (!recorder.complete()) {
    throw Error(ErrorCode::kModel, "attention",
                fmt::format("the model ran {} of its {} attention layers", recorder.next_layer(),
                            model.spec().layers.size()));
  }
}

// Runs all tokens at all positions. A position past the window at which the model fails (tables of
// sines end there) is left out.
std::vector<LayerRecord> Record(Model& model, std::span<const TokenId> tokens,
                                std::int64_t window) {
  std::vector<std::int64_t> positions = ProbedPositions(window);
  Recorder recorder(model.spec());
  for (std::size_t j = 0; j < positions.size(); ++j) {
    try {
      for (std::size_t t = 0; t < tokens.size(); ++t) {
        RunOne(model, recorder, positions[j], tokens[t], t);
      }
    } catch (const Error& error) {
      if (positions[j] < window || error.code() != ErrorCode::kModel) throw;
      recorder.DropFrom(j, tokens.size());
      positions.resize(j);
    }
  }
  std::vector<LayerRecord> records = recorder.TakeRecords();
  for (std::size_t layer = 0; layer < records.size(); ++layer) {
    for (RotationSamples* samples : {&records[layer].keys, &records[layer].queries}) {
      samples->head_dim = model.spec().layers[layer].key_dim;
      samples->positions = positions;
      samples->trained_window = window;
      samples->noise = records[layer].value_change;
    }
  }
  return records;
}

// Keys and queries as samples of one rotation.
RotationSamples Joint(const RotationSamples& keys, const RotationSamples& queries) {
  RotationSamples joint = keys;
  joint.values.clear();
  joint.values.reserve(keys.values.size() + queries.values.size());
  const std::size_t size = keys.values.size() / keys.positions.size();
  for (std::size_t j = 0; j < keys.positions.size(); ++j) {
    for (const RotationSamples* part : {&keys, &queries}) {
      const auto begin = part->values.begin() + static_cast<std::ptrdiff_t>(j * size);
      joint.values.insert(joint.values.end(), begin, begin + static_cast<std::ptrdiff_t>(size));
    }
  }
  return joint;
}

// "theta 100000", with no more digits than the measurement carries.
std::string ThetaText(double theta, double deviation) {
  const int digits = std::clamp(static_cast<int>(-std::log10(std::max(deviation, 1e-9))), 2, 6);
  const double rounded = std::stod(fmt::format("{:.{}g}", theta, digits));
  return fmt::format("theta {:.7g}", rounded);
}

// What tells a rotation from another, without the measurement's last digits: layers that share it
// are reported together.
std::string Describe(const LayerRopeFinding& finding, std::int64_t key_dim) {
  const LayerRope& rope = finding.rope;
  std::string text = fmt::format("{} pairing, {} of {} dimensions",
                                 rope.pairing == Pairing::kHalves ? "halves" : "neighbours",
                                 rope.rotated_dims, key_dim);
  if (rope.first_dim > 0) text += fmt::format(" from {} on", rope.first_dim);
  if (finding.fitted_theta > 0.0) {
    return text + ", " + ThetaText(finding.fitted_theta, finding.largest_deviation);
  }
  const auto [smallest, largest] =
      std::minmax_element(rope.frequencies.begin(), rope.frequencies.end());
  return text +
         fmt::format(", scaled or special frequencies {:.3g} to {:.3g}", *largest, *smallest);
}

std::string Precision(double deviation) {
  return fmt::format(" (frequencies within {:.1g})", std::max(deviation, 1e-9));
}

LayerRopeFinding Examine(const LayerRecord& record) {
  LayerRopeFinding finding;
  if (!(record.value_change <= kLargestValueChange)) {
    finding.reason = fmt::format(
        "values change with position (by {:.2g} of their norm at position {}): the hidden state "
        "depends on "
        "position, as learned or added position embeddings make it",
        record.value_change, record.value_change_position);
    return finding;
  }
  RotationFit fit = FitRotation(Joint(record.keys, record.queries));
  finding.largest_residual = fit.largest_residual;
  finding.largest_deviation = fit.largest_deviation;
  finding.fitted_theta = fit.fitted_theta;
  switch (fit.kind) {
    case RotationKind::kConstant:
      finding.verdict = RopeVerdict::kDoesNotRotate;
      finding.reason = "keys do not depend on position";
      return finding;
    case RotationKind::kUnexplained:
      // Whose fault it is: a rotation of keys alone is of no use when queries do something else.
      finding.reason = FitRotation(record.keys).kind == RotationKind::kUnexplained
                           ? fit.reason
                           : "queries do not turn as keys do: " + fit.reason;
      return finding;
    case RotationKind::kRotation:
      break;
  }
  finding.verdict = RopeVerdict::kRotates;
  finding.rope = std::move(fit.rope);
  finding.reason = Describe(finding, record.keys.head_dim);
  if (finding.fitted_theta > 0.0) finding.reason += Precision(finding.largest_deviation);
  if (fit.ends_at_window) {
    finding.reason += fmt::format(", no rotation past position {}", record.keys.trained_window - 1);
  }
  return finding;
}

// "30 of 30 layers rotate: halves pairing, 64 of 64 dimensions, theta 100000 (frequencies within
// 3e-7)".
std::string Summary(const ModelSpec& spec, const std::vector<LayerRopeFinding>& layers) {
  std::vector<std::pair<std::string, std::size_t>> kinds;  // in order of appearance, with counts
  std::size_t rotating = 0;
  double deviation = 0.0;
  for (std::size_t i = 0; i < layers.size(); ++i) {
    if (layers[i].verdict != RopeVerdict::kRotates) continue;
    ++rotating;
    if (layers[i].fitted_theta > 0.0) deviation = std::max(deviation, layers[i].largest_deviation);
    const std::string kind = Describe(layers[i], spec.layers[i].key_dim);
    const auto found = std::find_if(kinds.begin(), kinds.end(),
                                    [&](const auto& entry) { return entry.first == kind; });
    if (found == kinds.end()) {
      kinds.emplace_back(kind, 1);
    } else {
      ++found->second;
    }
  }
  if (rotating == 0) {
    return fmt::format("keys do not depend on position in any of the {} layers", layers.size());
  }
  std::string text = fmt::format("{} of {} layers rotate: ", rotating, layers.size());
  for (std::size_t i = 0; i < kinds.size(); ++i) {
    if (i > 0) text += "; ";
    if (kinds.size() > 1) text += fmt::format("{} with ", kinds[i].second);
    text += kinds[i].first;
  }
  if (deviation > 0.0) text += Precision(deviation);
  if (rotating < layers.size()) {
    text += fmt::format("; in {} keys do not depend on position", layers.size() - rotating);
  }
  return text;
}

}  // namespace

RopeSpec RopeProbeResult::spec() const {
  RopeSpec spec;
  for (const LayerRopeFinding& layer : layers) {
    CAROUSEL_CHECK(layer.verdict != RopeVerdict::kRefused);
    spec.layers.push_back(layer.rope);
  }
  return spec;
}

RopeProbeResult ProbeRope(Model& model, const RopeProbeOptions& options) {
  const ModelSpec& spec = model.spec();
  CAROUSEL_CHECK_GT(spec.vocabulary_size, 0);
  CAROUSEL_CHECK_GE(options.trained_window, 0);
  const std::int64_t window = options.trained_window == 0
                                  ? kUnknownTrainedWindow
                                  : std::max<std::int64_t>(options.trained_window, 2);
  const std::vector<TokenId> tokens =
      options.tokens.empty() ? TokensSpreadOver(spec.vocabulary_size) : options.tokens;
  RopeProbeResult result;
  result.verdict = RopeVerdict::kDoesNotRotate;
  std::vector<LayerRecord> records = Record(model, tokens, window);
  for (LayerRecord& record : records) {
    result.layers.push_back(Examine(record));
    record = LayerRecord();  // a large model's samples are tens of megabytes
  }
  for (std::size_t i = 0; i < result.layers.size(); ++i) {
    const LayerRopeFinding& layer = result.layers[i];
    if (layer.verdict == RopeVerdict::kRefused) {
      result.verdict = RopeVerdict::kRefused;
      result.reason = fmt::format("layer {}: {}", i, layer.reason);
      return result;
    }
    if (layer.verdict == RopeVerdict::kRotates) result.verdict = RopeVerdict::kRotates;
  }
  result.reason = Summary(spec, result.layers);
  return result;
}

}  // namespace carousel
