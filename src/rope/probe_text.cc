// SPDX-License-Identifier: Apache-2.0
#include "rope/probe_text.h"

#include <fmt/format.h>

#include <algorithm>
#include <cmath>
#include <cstdlib>
#include <vector>

namespace carousel {
namespace {

constexpr std::string_view kHeader = "carousel-rope-probe 1";

// "%a" of C: bit for bit, and whatever the locale.
std::string Exact(double number) { return fmt::format("{:a}", number); }

std::string OneLine(std::string text) {
  for (char& c : text) {
    if (c == '\n' || c == '\r') c = ' ';
  }
  return text;
}

// Lines and the words in them, one after another; what is missing makes `good` false.
class Reader {
 public:
  explicit Reader(std::string_view text) : text_(text) {}

  std::string_view Line() {
    const std::size_t end = text_.find('\n');
    good_ = good_ && end != std::string_view::npos;
    if (!good_) return {};
    line_ = text_.substr(0, end);
    text_.remove_prefix(end + 1);
    return line_;
  }
  // Of the line that Line gave last.
  std::string Word() {
    const std::size_t end = std::min(line_.find(' '), line_.size());
    std::string word(line_.substr(0, end));
    line_.remove_prefix(std::min(end + 1, line_.size()));
    good_ = good_ && !word.empty();
    return word;
  }
  double Number() {
    const std::string word = Word();
    char* end = nullptr;
    const double number = std::strtod(word.c_str(), &end);
    good_ = good_ && end != nullptr && *end == '\0' && std::isfinite(number);
    return number;
  }
  std::int64_t Whole(std::int64_t least, std::int64_t most) {
    const double number = Number();
    good_ = good_ && number >= static_cast<double>(least) && number <= static_cast<double>(most) &&
            number == std::floor(number);
    return good_ ? static_cast<std::int64_t>(number) : least;
  }
  bool good() const { return good_; }
  bool at_end() const { return text_.empty(); }

 private:
  std::string_view text_;
  std::string_view line_;
  bool good_ = true;
};

LayerRopeFinding ReadLayer(Reader* reader, std::int64_t key_dim) {
  LayerRopeFinding finding;
  reader->Line();
  finding.verdict = static_cast<RopeVerdict>(reader->Whole(0, 2));
  LayerRope& rope = finding.rope;
  rope.pairing = static_cast<Pairing>(reader->Whole(0, 1));
  rope.first_dim = reader->Whole(0, key_dim);
  rope.rotated_dims = reader->Whole(0, key_dim - rope.first_dim);
  rope.attention_factor = reader->Number();
  finding.fitted_theta = reader->Number();
  finding.largest_deviation = reader->Number();
  finding.largest_residual = reader->Number();
  for (std::int64_t i = 0; reader->good() && i < rope.rotated_dims / 2; ++i)
    rope.frequencies.push_back(reader->Number());
  finding.reason = reader->Line();
  return finding;
}

}  // namespace

std::string ProbeText(const RopeProbeResult& probe) {
  std::string text = fmt::format("{}\n{}\n{}\n{}\n", kHeader, static_cast<int>(probe.verdict),
                                 OneLine(probe.reason), probe.layers.size());
  for (const LayerRopeFinding& layer : probe.layers) {
    text += fmt::format("{} {} {} {} {} {} {} {}", static_cast<int>(layer.verdict),
                        static_cast<int>(layer.rope.pairing), layer.rope.first_dim,
                        layer.rope.rotated_dims, Exact(layer.rope.attention_factor),
                        Exact(layer.fitted_theta), Exact(layer.largest_deviation),
                        Exact(layer.largest_residual));
    for (const double frequency : layer.rope.frequencies) text += fmt::format(" {:a}", frequency);
    text += fmt::format("\n{}\n", OneLine(layer.reason));
  }
  return text;
}

std::optional<RopeProbeResult> ParseProbeText(std::string_view text, const ModelSpec& spec) {
  Reader reader(text);
  if (reader.Line() != kHeader) return std::nullopt;
  RopeProbeResult probe;
  reader.Line();
  probe.verdict = static_cast<RopeVerdict>(reader.Whole(0, 2));
  probe.reason = reader.Line();
  reader.Line();
  const auto layers = std::ssize(spec.layers);
  if (reader.Whole(layers, layers) != layers || !reader.good()) return std::nullopt;
  for (const AttentionLayerSpec& layer : spec.layers) {
    probe.layers.push_back(ReadLayer(&reader, layer.key_dim));
    const LayerRope& rope = probe.layers.back().rope;
    const bool is_rotation = rope.rotated_dims > 0;
    if (!reader.good() || rope.rotated_dims % 2 != 0) return std::nullopt;
    if ((probe.layers.back().verdict == RopeVerdict::kRotates) != is_rotation) return std::nullopt;
  }
  if (!reader.at_end()) return std::nullopt;
  return probe;
}

RopeOfModel KnownOrProbedRope(Model& model) {
  const ModelSpec& spec = model.spec();
  if (auto known = ParseProbeText(spec.known_rope, spec))
    return {.probe = *std::move(known), .was_known = true};
  RopeOfModel found{
      .probe = ProbeRope(model, {.tokens = {}, .trained_window = spec.trained_window}),
      .was_known = false};
  model.KeepRope(ProbeText(found.probe));
  return found;
}

}  // namespace carousel
