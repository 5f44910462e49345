// SPDX-License-Identifier: Apache-2.0
// carousel info: what a model is and what rotation will do with it.
#include <fmt/format.h>

#include <nlohmann/json.hpp>
#include <optional>

#include "carousel/error.h"
#include "cli/commands.h"
#include "cli/json_lines.h"
#include "cli/numbers.h"
#include "engine/settings.h"
#include "rope/declared_rope.h"
#include "rope/probe_text.h"
#include "rope/rope_probe.h"
#include "text/turn_format.h"

namespace carousel {
namespace {

using nlohmann::ordered_json;

std::string_view VerdictName(RopeVerdict verdict) {
  switch (verdict) {
    case RopeVerdict::kRotates:
      return "rotates";
    case RopeVerdict::kDoesNotRotate:
      return "does_not_rotate";
    case RopeVerdict::kRefused:
      return "refused";
  }
  return "";
}

std::string_view PairingName(Pairing pairing) {
  return pairing == Pairing::kHalves ? "halves" : "neighbours";
}

// Consecutive layers [begin, end) of which the same can be said.
struct LayerRun {
  std::size_t begin = 0;
  std::size_t end = 0;
};

bool SameAttention(const AttentionLayerSpec& left, const AttentionLayerSpec& right) {
  return left.query_heads == right.query_heads && left.kv_heads == right.kv_heads &&
         left.key_dim == right.key_dim && left.value_dim == right.value_dim &&
         left.sliding_window == right.sliding_window && left.soft_cap == right.soft_cap &&
         left.alibi_slopes.empty() == right.alibi_slopes.empty() &&
         left.sinks.empty() == right.sinks.empty();
}

// Frequencies are measured, so equal layers differ in the last digits.
bool SameRope(const LayerRopeFinding& left, const LayerRopeFinding& right) {
  return left.verdict == right.verdict && left.rope.pairing == right.rope.pairing &&
         left.rope.first_dim == right.rope.first_dim &&
         left.rope.rotated_dims == right.rope.rotated_dims &&
         fmt::format("{:.4g}", left.fitted_theta) == fmt::format("{:.4g}", right.fitted_theta);
}

template <typename Same>
std::vector<LayerRun> Runs(std::size_t layers, Same same) {
  std::vector<LayerRun> runs;
  for (std::size_t layer = 0; layer < layers; ++layer) {
    if (runs.empty() || !same(layer - 1, layer)) runs.push_back({layer, layer});
    runs.back().end = layer + 1;
  }
  return runs;
}

std::string RunName(const LayerRun& run) {
  if (run.end - run.begin == 1) return fmt::format("layer {}", run.begin);
  return fmt::format("layers {}-{}", run.begin, run.end - 1);
}

std::string DescribeAttention(const AttentionLayerSpec& layer) {
  std::string text =
      fmt::format("{} query heads, {} KV heads, ", layer.query_heads, layer.kv_heads);
  text += layer.key_dim == layer.value_dim
              ? fmt::format("head size {}", layer.key_dim)
              : fmt::format("head size {} (keys), {} (values)", layer.key_dim, layer.value_dim);
  if (layer.sliding_window > 0) text += fmt::format(", window of {}", layer.sliding_window);
  if (layer.soft_cap != 0) text += fmt::format(", soft cap {}", layer.soft_cap);
  if (!layer.alibi_slopes.empty()) text += ", ALiBi";
  if (!layer.sinks.empty()) text += ", sink logits";
  return text;
}

std::string DescribeRope(const LayerRopeFinding& finding, const AttentionLayerSpec& layer) {
  if (finding.verdict == RopeVerdict::kRefused) return "refused: " + finding.reason;
  if (finding.verdict == RopeVerdict::kDoesNotRotate) return "does not rotate";
  std::string text = fmt::format("rotates {} of {} dimensions, pairs {}", finding.rope.rotated_dims,
                                 layer.key_dim, PairingName(finding.rope.pairing));
  text += finding.fitted_theta > 0 ? fmt::format(", theta {:.6g} within {:.1e}",
                                                 finding.fitted_theta, finding.largest_deviation)
                                   : ", scaled or special frequencies";
  return text + fmt::format(", phase error {:.1e} rad", finding.largest_residual);
}

// What the flags' defaults come to with this model, and why.
std::string DescribeRotation(const RopeProbeResult& probe, const ModelSpec& spec) {
  const std::string window =
      spec.trained_window > 0
          ? fmt::format("the trained window of {} tokens", Grouped(spec.trained_window))
          : "the trained window (unknown)";
  switch (probe.verdict) {
    case RopeVerdict::kRotates:
      return fmt::format(
          "query: when blocks are evicted, queries are rotated so that what is left stands "
          "together and "
          "inside {}; keys are never rewritten. The probe: {}",
          window, probe.reason);
    case RopeVerdict::kDoesNotRotate:
      return fmt::format("off: keys do not depend on position. The probe: {}", probe.reason);
    case RopeVerdict::kRefused:
      return fmt::format(
          "refused: {}. Use --no-eviction, or --rotation off --positions keep inside {}",
          probe.reason, window);
  }
  return "";
}

std::int64_t CacheElementsPerToken(const ModelSpec& spec) {
  std::int64_t elements = 0;
  for (const AttentionLayerSpec& layer : spec.layers)
    elements += layer.kv_heads * (layer.key_dim + layer.value_dim);
  return elements;
}

// What a cache has with this model when nothing is said about it.
struct DefaultCache {
  std::optional<EngineConfig> config;
  std::string text;  // or why there is none
};

DefaultCache SettleDefaults(const ModelSpec& spec, const RopeProbeResult& probe) {
  const EngineConfig asked = ConfigDraft{}.Finished();
  try {
    const EngineConfig config = Settle(spec, asked, probe).config;
    const EvictionConfig& eviction = *config.eviction;
    std::string text = fmt::format(
        "{} tokens, {} first and {} newest ones never evicted, chunks of {}, blocks of {}, {} "
        "recalled",
        Grouped(eviction.max_cache_size), eviction.start_size, eviction.recent_size,
        config.chunk_size, config.cache.block_size, config.recall.blocks);
    if (!YieldedSizes(asked, config).empty())
      text += fmt::format("; smaller than elsewhere ({} tokens), to fit the trained window",
                          Grouped(asked.eviction->max_cache_size));
    return {.config = config, .text = std::move(text)};
  } catch (const Error& error) {
    return {.config = std::nullopt, .text = fmt::format("none: {}", error.what())};
  }
}

ordered_json DefaultCacheJson(const DefaultCache& cache) {
  if (!cache.config) return {{"reason", cache.text}};
  const EvictionConfig& eviction = *cache.config->eviction;
  return {{"max_cache_size", eviction.max_cache_size},
          {"start_size", eviction.start_size},
          {"recent_size", eviction.recent_size},
          {"chunk", cache.config->chunk_size},
          {"block_size", cache.config->cache.block_size},
          {"recall_blocks", cache.config->recall.blocks}};
}

// The chat template's state; a file that is missing or damaged is one of them.
struct TemplateState {
  bool reducible = false;
  std::string text;
};

TemplateState DescribeTemplate(const std::string& directory) {
  try {
    const TurnFormat format = TurnFormat::Load(directory);
    if (!format.reducible()) return {false, "not reducible: " + format.reason()};
    return {true, fmt::format("reducible to turns{}; a turn ends with {}",
                              format.has_system() ? "" : " (no system message)",
                              nlohmann::json(format.end_of_turn()).dump())};
  } catch (const Error& error) {
    return {false, error.what()};
  }
}

void Print(const ModelSpec& spec, const RopeOfModel& rope, const DefaultCache& cache,
           const TemplateState& chat, TextOutput* out) {
  const RopeProbeResult& probe = rope.probe;
  const auto row = [out](std::string_view name, std::string_view value) {
    out->Write(value.empty() ? fmt::format("{}\n", name) : fmt::format("{:<16} {}\n", name, value));
  };
  row("model", fmt::format("{}{}", spec.name,
                           spec.architecture.empty() ? "" : " (" + spec.architecture + ")"));
  row("layers", fmt::format("{}", spec.layers.size()));
  row("vocabulary", Grouped(spec.vocabulary_size));
  row("trained window",
      spec.trained_window > 0 ? Grouped(spec.trained_window) + " tokens" : std::string("unknown"));
  row("end tokens", fmt::format("{}", fmt::join(spec.end_tokens, " ")));
  const std::int64_t elements = CacheElementsPerToken(spec);
  row("cache per token",
      fmt::format("{} bytes as f16, {} as f32", Grouped(2 * elements), Grouped(4 * elements)));
  row("attention", "");
  for (const LayerRun& run : Runs(spec.layers.size(), [&](std::size_t i, std::size_t j) {
         return SameAttention(spec.layers[i], spec.layers[j]);
       }))
    row("  " + RunName(run), DescribeAttention(spec.layers[run.begin]));
  row("RoPE, measured",
      rope.was_known ? "by an earlier start, of these very files" : "by this start");
  for (const LayerRun& run : Runs(probe.layers.size(), [&](std::size_t i, std::size_t j) {
         return SameRope(probe.layers[i], probe.layers[j]);
       }))
    row("  " + RunName(run), DescribeRope(probe.layers[run.begin], spec.layers[run.begin]));
  if (spec.declared_rope_theta > 0)
    row("  files claim", fmt::format("theta {:.6g}", spec.declared_rope_theta));
  row("rotation", DescribeRotation(probe, spec));
  row("cache", cache.text);
  row("chat template", chat.text);
}

ordered_json LayerJson(const AttentionLayerSpec& layer, const LayerRopeFinding& finding) {
  return {{"query_heads", layer.query_heads},
          {"kv_heads", layer.kv_heads},
          {"key_dim", layer.key_dim},
          {"value_dim", layer.value_dim},
          {"sliding_window", layer.sliding_window},
          {"soft_cap", layer.soft_cap},
          {"rope", VerdictName(finding.verdict)},
          {"pairing", PairingName(finding.rope.pairing)},
          {"first_dim", finding.rope.first_dim},
          {"rotated_dims", finding.rope.rotated_dims},
          {"theta", finding.fitted_theta},
          {"largest_deviation", finding.largest_deviation},
          {"largest_residual", finding.largest_residual},
          {"frequencies", finding.rope.frequencies},
          {"reason", finding.reason}};
}

ordered_json Json(const ModelSpec& spec, const RopeOfModel& rope, const DefaultCache& cache,
                  const TemplateState& chat) {
  const RopeProbeResult& probe = rope.probe;
  ordered_json layers = ordered_json::array();
  for (std::size_t i = 0; i < spec.layers.size(); ++i)
    layers.push_back(LayerJson(spec.layers[i], probe.layers[i]));
  const std::int64_t elements = CacheElementsPerToken(spec);
  return {{"type", "info"},
          {"model", spec.name},
          {"architecture", spec.architecture},
          {"vocabulary_size", spec.vocabulary_size},
          {"trained_window", spec.trained_window},
          {"end_tokens", spec.end_tokens},
          {"cache_bytes_per_token_f16", 2 * elements},
          {"cache_bytes_per_token_f32", 4 * elements},
          {"declared_rope_theta", spec.declared_rope_theta},
          {"rope", VerdictName(probe.verdict)},
          {"rope_was_known", rope.was_known},
          {"rotation_reason", DescribeRotation(probe, spec)},
          {"default_cache", DefaultCacheJson(cache)},
          {"chat_template_reducible", chat.reducible},
          {"chat_template", chat.text},
          {"layers", std::move(layers)}};
}

}  // namespace

int RunInfo(const InfoFlags& flags, Backend* backend, Console* console) {
  std::optional<JsonLines> json;
  if (!flags.json.empty()) json.emplace(flags.json, console->out.fd());
  const std::unique_ptr<Model> model = backend->LoadModel(flags.model);
  const RopeOfModel rope = KnownOrProbedRope(*model);
  CheckDeclaredRope(model->spec(), rope.probe);
  const TemplateState chat = DescribeTemplate(flags.model.directory);
  const DefaultCache cache = SettleDefaults(model->spec(), rope.probe);
  if (flags.json != "-") Print(model->spec(), rope, cache, chat, &console->out);
  if (json) {
    json->Write(Json(model->spec(), rope, cache, chat));
    json->Close();
  }
  return 0;
}

}  // namespace carousel
