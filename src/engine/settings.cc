// SPDX-License-Identifier: Apache-2.0
#include "engine/settings.h"

#include <fmt/format.h>

#include <algorithm>

#include "attention/recall_sketch.h"
#include "base/check.h"
#include "cache/plane_layout.h"
#include "carousel/error.h"
#include "eviction/budget.h"
#include "rope/declared_rope.h"

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
        fmt::format(
            "compact needs rotation, which is off ({}); use keep or auto, or turn rotation on",
            probe.verdict == RopeVerdict::kRefused ? probe.reason : "by configuration"));
  }
  return PositionPolicy::kKeep;
}

std::int64_t BlocksFor(std::int64_t tokens, std::int64_t block_size) {
  return (tokens + block_size - 1) / block_size;
}

// What a layer's sliding window needs between steps: its tokens, and a block that stands half
// inside. 0: the layer has none, or one so long that with a chunk it passes the trained window;
// then it is no help, and the layer is treated as one that sees everything.
std::int64_t WindowTokens(const AttentionLayerSpec& layer, std::int64_t trained_window,
                          const EngineConfig& config) {
  const std::int64_t block_size = config.cache.block_size;
  if (layer.sliding_window == 0) return 0;
  const std::int64_t tokens = (BlocksFor(layer.sliding_window, block_size) + 1) * block_size;
  const bool fits =
      trained_window == 0 || tokens + config.chunk_size + block_size <= trained_window;
  return fits ? tokens : 0;
}

// What each group may hold. Blocks past a window go by themselves, so nothing inside it has to; the
// budget is split between the layers that have none.
std::vector<std::int64_t> GroupSizes(const ModelSpec& spec, const EngineSettings& settings) {
  const EvictionConfig& eviction = *settings.config.eviction;
  std::vector<std::size_t> rank(spec.layers.size(), 0);  // among the layers that share the budget
  std::int64_t sharing = 0;
  for (std::size_t group = 0; group < settings.groups.size(); ++group) {
    if (settings.window_tokens[group] > 0 || settings.groups[group].first_kv_head > 0) continue;
    rank[static_cast<std::size_t>(settings.groups[group].layer)] =
        static_cast<std::size_t>(sharing++);
  }
  const auto shared = LayerSizes(eviction, sharing, settings.config.cache.block_size);
  const bool is_per_layer = !eviction.layer_max_cache_size.empty();
  std::vector<std::int64_t> sizes;
  for (std::size_t group = 0; group < settings.groups.size(); ++group) {
    const auto layer = static_cast<std::size_t>(settings.groups[group].layer);
    const std::int64_t window = settings.window_tokens[group];
    sizes.push_back(window > 0 ? window : shared[is_per_layer ? layer : rank[layer]]);
  }
  return sizes;
}

void SettleEviction(const ModelSpec& spec, const RopeProbeResult& probe, EngineSettings* settings) {
  const EvictionConfig& eviction = *settings->config.eviction;
  const std::int64_t block_size = settings->config.cache.block_size;
  const auto layers = spec.layers.size();
  if (!eviction.layer_max_cache_size.empty() && eviction.layer_max_cache_size.size() != layers) {
    throw Error(ErrorCode::kInvalidArgument, "layer_max_cache_size",
                fmt::format("{} sizes for {} layers; give one for each layer or none",
                            eviction.layer_max_cache_size.size(), layers));
  }
  settings->max_cache_size = GroupSizes(spec, *settings);
  std::int64_t largest = 0;
  for (std::size_t group = 0; group < settings->groups.size(); ++group) {
    const std::int64_t size = settings->max_cache_size[group];
    const auto layer = static_cast<std::size_t>(settings->groups[group].layer);
    largest = std::max(
        largest, settings->window_tokens[group] > 0
                     ? size
                     : LargestHeadSize(eviction, size, spec.layers[layer].kv_heads, block_size));
  }
  // Heads that share a layer's size share a pool as well, so the sum is what counts.
  for (const std::int64_t size : settings->max_cache_size) {
    // One block beyond max and chunk: a chunk may start and end inside a block.
    settings->reserved_blocks.push_back(
        (size + settings->config.chunk_size + block_size - 1) / block_size + 1);
  }

  PositionRules& rules = settings->rules;
  rules.rotation = SettleRotation(eviction, probe);
  const bool recalls = settings->config.recall.blocks > 0 && rules.rotation != Rotation::kKeys;
  rules.policy = SettlePositions(eviction, rules.rotation, recalls, probe);
  settings->rotation_reason = probe.reason;
  if (probe.verdict == RopeVerdict::kRotates) settings->model_rope = probe.spec();
  if (rules.rotation != Rotation::kOff) settings->rope = settings->model_rope;

  RecallConfig& recall = settings->config.recall;
  const std::int64_t alone = largest + settings->config.chunk_size + block_size;
  if (recall.yields && rules.rotation == Rotation::kKeys) recall.blocks = 0;
  if (recall.yields && rules.policy != PositionPolicy::kKeep && spec.trained_window > 0) {
    recall.blocks =
        std::clamp<std::int64_t>((spec.trained_window - alone) / block_size, 0, recall.blocks);
  }
  const std::int64_t most = alone + recall.blocks * block_size;
  if (spec.trained_window == 0) {
    // Nothing says how far keeping is safe, so compact from the start; angles stay small all the
    // same.
    if (rules.policy == PositionPolicy::kAuto) rules.policy = PositionPolicy::kCompact;
    rules.trained_window = 2 * most;
  } else if (rules.policy != PositionPolicy::kKeep && most > spec.trained_window) {
    if (largest > eviction.max_cache_size && eviction.layer_max_cache_size.empty()) {
      throw Error(
          ErrorCode::kInvalidArgument, "max_cache_size",
          fmt::format(
              "{}, split as budget {} does, and a chunk of {} can come to {} positions, more "
              "than the {} that the model was trained on; use less, or budget uniform",
              eviction.max_cache_size, Name(eviction.budget), settings->config.chunk_size, most,
              spec.trained_window));
    }
    throw Error(
        ErrorCode::kInvalidArgument, "max_cache_size",
        fmt::format(
            "{} and a chunk of {} need {} positions, more than the {} that the model was trained "
            "on; use at most {}",
            largest, settings->config.chunk_size, most, spec.trained_window,
            (spec.trained_window - settings->config.chunk_size - block_size) / block_size *
                block_size));
  }
}

// Both limits as one in bytes.
std::int64_t SettleLimit(const EngineSettings& settings) {
  const CacheConfig& cache = settings.config.cache;
  std::int64_t limit = cache.limit_bytes;
  if (cache.limit_tokens > 0) {
    std::int64_t bytes = 0;
    for (std::size_t group = 0; group < settings.groups.size(); ++group) {
      const std::int64_t window = settings.window_tokens[group];
      // A window never holds more, so what it does not need is not given to the other layers.
      const std::int64_t tokens =
          window > 0 ? std::min(cache.limit_tokens, window + settings.config.chunk_size)
                     : cache.limit_tokens;
      bytes += BlocksFor(tokens, cache.block_size) *
               static_cast<std::int64_t>(settings.shapes[group].bytes());
    }
    limit = limit == 0 ? bytes : std::min(limit, bytes);
  }
  return limit;
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

EngineSettings Settle(const ModelSpec& spec, const EngineConfig& config,
                      const RopeProbeResult& probe) {
  Validate(config);
  EngineSettings settings;
  settings.config = config;
  if (config.eviction && config.eviction->budget == Budget::kAdaptive)
    settings.config.eviction->grouping = Grouping::kHead;
  settings.rules = {.policy = PositionPolicy::kKeep,
                    .rotation = Rotation::kOff,
                    .trained_window = spec.trained_window,
                    .max_step_tokens = config.chunk_size};
  settings.rope.layers.resize(spec.layers.size());
  settings.model_rope = settings.rope;
  settings.groups =
      MakeCacheGroups(spec.layers, settings.config.eviction ? settings.config.eviction->grouping
                                                            : Grouping::kLayer);
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
    SettleEviction(spec, probe, &settings);
    SettleRecall(spec, &settings);
  } else {
    settings.rotation_reason = "nothing is evicted, so nothing has to rotate";
  }
  settings.limit_bytes = SettleLimit(settings);
  return settings;
}

EngineSettings Settle(Model& model, const EngineConfig& config) {
  Validate(config);
  if (!config.eviction) return Settle(model.spec(), config, RopeProbeResult{});
  const RopeProbeResult probe =
      ProbeRope(model, {.tokens = {}, .trained_window = model.spec().trained_window});
  CheckDeclaredRope(model.spec(), probe);
  return Settle(model.spec(), config, probe);
}

}  // namespace carousel
