// SPDX-License-Identifier: Apache-2.0
#include "engine/settings.h"

#include <fmt/format.h>

#include <algorithm>

#include "attention/recall_sketch.h"
#include "base/check.h"
#include "cache/plane_layout.h"
#include "carousel/error.h"
#include "engine/window_fit.h"
#include "rope/declared_rope.h"
#include "rope/probe_text.h"

namespace carousel {
namespace {

Rotation SettleRotation(const EvictionConfig& eviction, const RopeProbeResult& probe) {
  switch (eviction.rotation) {
    case Rotation::kAuto:
      return probe.verdict == RopeVerdict::kRotates ? Rotation::kQuery : Rotation::kOff;
    case Rotation::kOff:
      return Rotation::kOff;
    case Rotation::kQuery:
    case Rotation::kKeys:
      break;
  }
  if (probe.verdict == RopeVerdict::kRefused) {
    throw Error(ErrorCode::kInvalidArgument, "rotation",
                fmt::format("{} is not possible with this model: {}; use off or auto",
                            Name(eviction.rotation), probe.reason));
  }
  // Where nothing rotates, any rotation is the identity.
  return probe.verdict == RopeVerdict::kRotates ? eviction.rotation : Rotation::kOff;
}

PositionPolicy SettlePositions(const EvictionConfig& eviction, Rotation rotation, bool recalls,
                               const RopeProbeResult& probe) {
  const bool can_compact =
      rotation != Rotation::kOff || probe.verdict == RopeVerdict::kDoesNotRotate;
  if (can_compact && recalls && eviction.positions == PositionPolicy::kAuto)
    return PositionPolicy::kCompact;
  if (can_compact) return eviction.positions;
  if (eviction.positions == PositionPolicy::kCompact) {
    throw Error(
        ErrorCode::kInvalidArgument, "positions",
        fmt::format("compact needs rotation, which is off ({}); use keep or auto{}",
                    probe.verdict == RopeVerdict::kRefused ? probe.reason : "by configuration",
                    probe.verdict == RopeVerdict::kRefused ? "" : ", or turn rotation on"));
  }
  return PositionPolicy::kKeep;
}

std::int64_t BlocksFor(std::int64_t tokens, std::int64_t block_size) {
  return (tokens + block_size - 1) / block_size;
}

// The rotation and the positions in force, but for a window that is not known.
PositionRules SettleRules(const ModelSpec& spec, const EngineConfig& config,
                          const RopeProbeResult& probe) {
  PositionRules rules{.policy = PositionPolicy::kKeep,
                      .rotation = SettleRotation(*config.eviction, probe),
                      .trained_window = spec.trained_window,
                      .max_step_tokens = config.chunk_size};
  const bool recalls = config.recall.blocks > 0 && rules.rotation != Rotation::kKeys;
  rules.policy = SettlePositions(*config.eviction, rules.rotation, recalls, probe);
  return rules;
}

// Whether positions may have to be compact inside the trained window.
bool IsBoundByWindow(const PositionRules& rules) {
  return rules.policy != PositionPolicy::kKeep && rules.trained_window > 0;
}

void SettleEviction(const ModelSpec& spec, const RopeProbeResult& probe,
                    std::int64_t asked_block_size, EngineSettings* settings) {
  const EngineConfig& config = settings->config;
  const std::int64_t block_size = config.cache.block_size;
  settings->max_cache_size = LayOutCache(spec, config).max_cache_size;
  // Heads that share a layer's size share a pool as well, so the sum is what counts.
  for (const std::int64_t size : settings->max_cache_size) {
    // One block beyond max and chunk: a chunk may start and end inside a block.
    settings->reserved_blocks.push_back(BlocksFor(size + config.chunk_size, block_size) + 1);
  }

  PositionRules& rules = settings->rules;
  rules = SettleRules(spec, config, probe);
  settings->rotation_reason = probe.reason;
  if (probe.verdict == RopeVerdict::kRotates) settings->model_rope = SnapToDeclared(spec, probe);
  if (rules.rotation != Rotation::kOff) settings->rope = settings->model_rope;

  RecallConfig& recall = settings->config.recall;
  if (recall.yields && rules.rotation == Rotation::kKeys) recall.blocks = 0;
  if (IsBoundByWindow(rules)) {
    while (recall.yields && recall.blocks > 0 &&
           MostPositions(spec, config, recall.blocks) > spec.trained_window) {
      --recall.blocks;
    }
    CheckFitsWindow(spec, config, asked_block_size);
  }
  if (spec.trained_window == 0) {
    // Nothing says how far keeping is safe, so compact from the start; angles stay small all the
    // same.
    if (rules.policy == PositionPolicy::kAuto) rules.policy = PositionPolicy::kCompact;
    rules.trained_window = 2 * MostPositions(spec, config, recall.blocks);
  }
}

// What a limit of so many tokens in each layer comes to.
std::int64_t BytesOfTokens(const EngineSettings& settings, std::int64_t limit_tokens) {
  const std::int64_t block_size = settings.config.cache.block_size;
  std::int64_t bytes = 0;
  for (std::size_t group = 0; group < settings.groups.size(); ++group) {
    const std::int64_t window = settings.window_tokens[group];
    // A window never holds more, so what it does not need is not given to the other layers.
    const std::int64_t tokens =
        window > 0 ? std::min(limit_tokens, window + settings.config.chunk_size + block_size)
                   : limit_tokens;
    bytes +=
        BlocksFor(tokens, block_size) * static_cast<std::int64_t>(settings.shapes[group].bytes());
  }
  return bytes;
}

// Throws where a limit has no room for what is taken at the start.
void CheckLimits(const EngineSettings& settings) {
  const CacheConfig& cache = settings.config.cache;
  std::int64_t needed = 0;
  std::int64_t least_tokens = 0;
  for (std::size_t group = 0; group < settings.reserved_blocks.size(); ++group) {
    const std::int64_t blocks = settings.reserved_blocks[group];
    needed += blocks * static_cast<std::int64_t>(settings.shapes[group].bytes());
    least_tokens = std::max(least_tokens, blocks * cache.block_size);
  }
  const auto refuse = [](std::string_view field, std::int64_t given, std::int64_t least) {
    throw Error(ErrorCode::kOutOfMemory, field,
                fmt::format("{} is too little for a full cache and a chunk; lower max_cache_size, "
                            "or use at least {}",
                            given, least));
  };
  if (cache.limit_bytes > 0 && cache.limit_bytes < needed)
    refuse("limit_bytes", cache.limit_bytes, needed);
  if (cache.limit_tokens == 0 || BytesOfTokens(settings, cache.limit_tokens) >= needed) return;
  while (least_tokens > cache.block_size &&
         BytesOfTokens(settings, least_tokens - cache.block_size) >= needed)
    least_tokens -= cache.block_size;
  refuse("limit_tokens", cache.limit_tokens, least_tokens);
}

// Both limits as one in bytes.
std::int64_t SettleLimit(const EngineSettings& settings) {
  const CacheConfig& cache = settings.config.cache;
  CheckLimits(settings);
  if (cache.limit_tokens == 0) return cache.limit_bytes;
  const std::int64_t bytes = BytesOfTokens(settings, cache.limit_tokens);
  return cache.limit_bytes == 0 ? bytes : std::min(cache.limit_bytes, bytes);
}

void CheckValueType(std::string_view field, KvType type, std::int64_t value_dim) {
  const std::int64_t multiple = ValueDimMultiple(type);
  if (value_dim % multiple == 0) return;
  throw Error(
      ErrorCode::kInvalidArgument, field,
      fmt::format("{} needs heads of a multiple of {} numbers, and this model's values have "
                  "{}; use int8",
                  Name(type), multiple, value_dim));
}

KvType StoredType(const RecallConfig& recall, KvType cached) {
  if (recall.kv_type) return *recall.kv_type;
  return cached == KvType::kInt4 ? cached : KvType::kInt8;
}

void SettleRecall(const ModelSpec& spec, EngineSettings* settings) {
  const RecallConfig& recall = settings->config.recall;
  if (recall.blocks == 0) return;
  if (settings->rules.rotation == Rotation::kKeys) {
    throw Error(ErrorCode::kInvalidArgument, "recall_blocks",
                fmt::format("{} blocks cannot be brought back while keys are rewritten: each keeps "
                            "the position that it was written at; use rotation query, or 0",
                            recall.blocks));
  }
  const CacheConfig& cache = settings->config.cache;
  for (const AttentionLayerSpec& layer : spec.layers) {
    if (!Recalls(layer)) continue;
    const BlockShape shape{.block_size = cache.block_size,
                           .kv_heads = 1,
                           .key_dim = layer.key_dim,
                           .value_dim = layer.value_dim,
                           .key_type = StoredType(recall, cache.key_type),
                           .value_type = StoredType(recall, cache.value_type)};
    CheckValueType("recall_kv_type", shape.value_type, layer.value_dim);
    for (std::int64_t head = 0; head < layer.kv_heads; ++head) {
      settings->recall_lanes.push_back(
          {.shape = shape, .sketch_depth = SketchDepth(layer.key_dim)});
    }
  }
}

}  // namespace

namespace {

// What was asked for, with the sizes that yield made to fit.
EngineConfig FittedConfig(const ModelSpec& spec, EngineConfig config,
                          const RopeProbeResult& probe) {
  if (!config.eviction) return config;
  EvictionConfig& eviction = *config.eviction;
  const auto layers = spec.layers.size();
  if (!eviction.layer_max_cache_size.empty() && eviction.layer_max_cache_size.size() != layers) {
    throw Error(ErrorCode::kInvalidArgument, "layer_max_cache_size",
                fmt::format("{} sizes for {} layers; give one for each layer or none",
                            eviction.layer_max_cache_size.size(), layers));
  }
  if (eviction.budget == Budget::kAdaptive) eviction.grouping = Grouping::kHead;
  config = FitSizes(spec, config, IsBoundByWindow(SettleRules(spec, config, probe)));
  // Once more, now that nothing yields any longer.
  EngineConfig settled = config;
  settled.yields = {};
  Validate(settled);
  return config;
}

}  // namespace

EngineSettings Settle(const ModelSpec& spec, const EngineConfig& asked,
                      const RopeProbeResult& probe) {
  Validate(asked);
  EngineSettings settings;
  settings.config = FittedConfig(spec, asked, probe);
  const EngineConfig& config = settings.config;
  settings.rules = {.policy = PositionPolicy::kKeep,
                    .rotation = Rotation::kOff,
                    .trained_window = spec.trained_window,
                    .max_step_tokens = config.chunk_size};
  settings.rope.layers.resize(spec.layers.size());
  settings.model_rope = settings.rope;
  settings.groups =
      MakeCacheGroups(spec.layers, config.eviction ? config.eviction->grouping : Grouping::kLayer);
  for (const CacheGroup& group : settings.groups) {
    const AttentionLayerSpec& layer = spec.layers[static_cast<std::size_t>(group.layer)];
    CheckValueType("value_type", config.cache.value_type, layer.value_dim);
    settings.window_tokens.push_back(WindowTokens(layer, spec.trained_window, config));
    settings.shapes.push_back({.block_size = config.cache.block_size,
                               .kv_heads = group.kv_heads,
                               .key_dim = layer.key_dim,
                               .value_dim = layer.value_dim,
                               .key_type = config.cache.key_type,
                               .value_type = config.cache.value_type});
  }
  if (config.eviction) {
    SettleEviction(spec, probe, asked.cache.block_size, &settings);
    SettleRecall(spec, &settings);
  } else {
    settings.rotation_reason = "nothing is evicted, so nothing has to rotate";
  }
  settings.config.yields = {};
  settings.limit_bytes = SettleLimit(settings);
  return settings;
}

EngineSettings Settle(Model& model, const EngineConfig& config) {
  Validate(config);
  return Settle(model.spec(), config, ProbeFor(model, config));
}

RopeProbeResult ProbeFor(Model& model, const EngineConfig& config) {
  if (!config.eviction) return {};
  RopeProbeResult probe = KnownOrProbedRope(model).probe;
  CheckDeclaredRope(model.spec(), probe);
  return probe;
}

}  // namespace carousel
