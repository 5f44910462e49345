// SPDX-License-Identifier: Apache-2.0
#include "engine/window_fit.h"

#include <fmt/format.h>

#include <algorithm>
#include <optional>
#include <string>
#include <string_view>
#include <utility>

#include "cache/plane_layout.h"
#include "carousel/error.h"
#include "engine/settings.h"
#include "eviction/budget.h"

namespace carousel {
namespace {

// How the trained window is shared out between sizes that yield, in sixteenths: about as the
// defaults are among themselves. What is left is for a block begun and for recall.
constexpr std::int64_t kShares = 16;
constexpr std::int64_t kStartShare = 1;
constexpr std::int64_t kRecentShare = 2;
constexpr std::int64_t kChunkShare = 4;
constexpr std::int64_t kCacheShare = 9;
// A window is to have this many blocks, or eviction has little to choose from.
constexpr std::int64_t kFewestBlocks = 16;

std::int64_t LeastCache(const EngineConfig& config) {
  return config.eviction->start_size + config.eviction->recent_size + config.cache.block_size;
}

std::int64_t RecallThatMustFit(const EngineConfig& config) {
  return config.recall.yields ? 0 : config.recall.blocks;
}

// The largest of least, least + step, ... up to `most` that `fits`, which holds of all below one
// that it holds of. nullopt: none.
template <typename Fits>
std::optional<std::int64_t> Largest(std::int64_t least, std::int64_t step, std::int64_t most,
                                    const Fits& fits) {
  if (least > most || !fits(least)) return std::nullopt;
  std::int64_t low = 0;
  std::int64_t high = (most - least) / step;
  while (low < high) {
    const std::int64_t middle = low + (high - low + 1) / 2;
    if (fits(least + middle * step)) {
      low = middle;
    } else {
      high = middle - 1;
    }
  }
  return least + low * step;
}

// Blocks are halved until the window has enough of them: smaller blocks divide the sizes that were
// whole blocks before.
std::int64_t FittingBlockSize(const EngineConfig& config, std::int64_t window) {
  std::int64_t multiple = KeyTokensMultiple(config.cache.key_type);
  if (config.recall.kv_type)
    multiple = std::max(multiple, KeyTokensMultiple(*config.recall.kv_type));
  std::int64_t size = config.cache.block_size;
  while (size * kFewestBlocks > window && size % (2 * multiple) == 0) size /= 2;
  return size;
}

// Whether only max_cache_size says how large the cache is, and yields.
bool CacheYields(const EngineConfig& config) {
  return config.yields.max_cache_size && config.eviction->layer_max_cache_size.empty();
}

std::int64_t SmallestCache(const EngineConfig& config) {
  std::int64_t smallest = config.eviction->max_cache_size;
  for (const std::int64_t size : config.eviction->layer_max_cache_size)
    smallest = std::min(smallest, size);
  return smallest;
}

void LeaveABlockToEvict(EngineConfig* config) {
  EvictionConfig& eviction = *config->eviction;
  const std::int64_t block = config->cache.block_size;
  const std::int64_t smallest = SmallestCache(*config);
  const auto shrink = [&](bool may, std::int64_t* size) {
    const std::int64_t over = std::max<std::int64_t>(0, LeastCache(*config) - smallest);
    if (may) *size -= std::min(over, *size - block);
  };
  shrink(config->yields.recent_size, &eviction.recent_size);
  shrink(config->yields.start_size, &eviction.start_size);
}

void FitWindow(const ModelSpec& spec, EngineConfig* config) {
  const std::int64_t window = spec.trained_window;
  const auto fits = [&] {
    return MostPositions(spec, *config, RecallThatMustFit(*config)) <= window;
  };
  if (fits() && LeastCache(*config) <= SmallestCache(*config)) return;
  const YieldingSizes& yields = config->yields;
  EvictionConfig& eviction = *config->eviction;
  if (yields.block_size) config->cache.block_size = FittingBlockSize(*config, window);
  const std::int64_t block = config->cache.block_size;
  const auto shrink = [&](bool may, std::int64_t share, std::int64_t least, std::int64_t* size) {
    const std::int64_t part = window * share / kShares / block * block;
    if (may) *size = std::min(*size, std::max(least, part));
  };
  // The areas are a part of the cache: they make room where the cache yields as well.
  const bool start_yields = CacheYields(*config) && yields.start_size;
  const bool recent_yields = CacheYields(*config) && yields.recent_size;
  shrink(yields.chunk_size, kChunkShare, block, &config->chunk_size);
  shrink(start_yields, kStartShare, block, &eviction.start_size);
  shrink(recent_yields, kRecentShare, block, &eviction.recent_size);
  shrink(yields.max_cache_size, kCacheShare, LeastCache(*config), &eviction.max_cache_size);
  // What was asked for may leave less: then these give up a block at a time, in this order.
  const auto give_up = [&](bool may, std::int64_t least, std::int64_t* size) {
    while (may && *size > least && !fits()) *size = std::max(least, *size - block);
  };
  give_up(yields.max_cache_size, LeastCache(*config), &eviction.max_cache_size);
  give_up(yields.chunk_size, block, &config->chunk_size);
  for (const auto& [may, area] : {std::pair(recent_yields, &eviction.recent_size),
                                  std::pair(start_yields, &eviction.start_size)}) {
    while (may && *area > block && !fits()) {
      *area -= block;
      give_up(yields.max_cache_size, LeastCache(*config), &eviction.max_cache_size);
    }
  }
}

[[noreturn]] void Refuse(std::string_view field, const std::string& problem) {
  throw Error(ErrorCode::kInvalidArgument, field, problem);
}

}  // namespace

std::int64_t WindowTokens(const AttentionLayerSpec& layer, std::int64_t trained_window,
                          const EngineConfig& config) {
  const std::int64_t block_size = config.cache.block_size;
  if (layer.sliding_window == 0) return 0;
  const std::int64_t blocks = (layer.sliding_window + block_size - 1) / block_size;
  const std::int64_t tokens = (blocks + 1) * block_size;
  const bool fits =
      trained_window == 0 || tokens + config.chunk_size + block_size <= trained_window;
  return fits ? tokens : 0;
}

// Blocks past a window go by themselves, so nothing inside it has to; the budget is split between
// the layers that have none.
CacheLayout LayOutCache(const ModelSpec& spec, const EngineConfig& config) {
  const EvictionConfig& eviction = *config.eviction;
  CacheLayout layout;
  layout.groups = MakeCacheGroups(
      spec.layers, eviction.budget == Budget::kAdaptive ? Grouping::kHead : eviction.grouping);
  std::vector<std::size_t> rank(spec.layers.size(), 0);  // among the layers that share the budget
  std::int64_t sharing = 0;
  for (const CacheGroup& group : layout.groups) {
    const auto layer = static_cast<std::size_t>(group.layer);
    layout.window_tokens.push_back(WindowTokens(spec.layers[layer], spec.trained_window, config));
    if (layout.window_tokens.back() > 0 || group.first_kv_head > 0) continue;
    rank[layer] = static_cast<std::size_t>(sharing++);
  }
  const auto shared = LayerSizes(eviction, sharing, config.cache.block_size);
  const bool is_per_layer = !eviction.layer_max_cache_size.empty();
  for (std::size_t group = 0; group < layout.groups.size(); ++group) {
    const auto layer = static_cast<std::size_t>(layout.groups[group].layer);
    const std::int64_t window = layout.window_tokens[group];
    layout.max_cache_size.push_back(window > 0 ? window
                                               : shared[is_per_layer ? layer : rank[layer]]);
  }
  return layout;
}

std::int64_t MostPositions(const ModelSpec& spec, const EngineConfig& config,
                           std::int64_t recall_blocks) {
  const std::int64_t block_size = config.cache.block_size;
  const CacheLayout layout = LayOutCache(spec, config);
  std::int64_t most = 0;
  for (std::size_t group = 0; group < layout.groups.size(); ++group) {
    const AttentionLayerSpec& layer =
        spec.layers[static_cast<std::size_t>(layout.groups[group].layer)];
    const std::int64_t size = layout.max_cache_size[group];
    const std::int64_t held =
        layout.window_tokens[group] > 0
            ? size
            : LargestHeadSize(*config.eviction, size, layer.kv_heads, block_size);
    most = std::max(most, held + (Recalls(layer) ? recall_blocks * block_size : 0));
  }
  return most + config.chunk_size + block_size;
}

EngineConfig FitSizes(const ModelSpec& spec, EngineConfig config, bool bound_by_window) {
  LeaveABlockToEvict(&config);
  if (!bound_by_window) return config;
  FitWindow(spec, &config);
  LeaveABlockToEvict(&config);  // smaller blocks leave smaller areas
  return config;
}

namespace {

// A configuration that is changed one size after the other until it fits; the first change that
// makes the rest possible is the mend.
class WindowMend {
 public:
  WindowMend(const ModelSpec& spec, const EngineConfig& config, std::int64_t asked_block_size)
      : spec_(spec), given_(config), asked_block_(asked_block_size), least_(config) {
    const std::int64_t block = config.cache.block_size;
    if (config.yields.start_size) least_.eviction->start_size = block;
    if (config.yields.recent_size) least_.eviction->recent_size = block;
  }

  [[noreturn]] void Refuse() {
    MendCache();
    MendChunk();
    MendRecall();
    MendArea("recent_size", given_.yields.recent_size, &EvictionConfig::recent_size);
    MendArea("start_size", given_.yields.start_size, &EvictionConfig::start_size);
    MendBlock();
    carousel::Refuse("eviction",
                     fmt::format("a cache that evicts needs at least {} positions, more than the "
                                 "{} that the model was trained on; turn eviction off",
                                 Needed(least_), spec_.trained_window));
  }

 private:
  std::int64_t Needed(const EngineConfig& config) const {
    return MostPositions(spec_, config, config.recall.blocks);
  }
  // The least that can be asked for, in whole blocks as they were asked for.
  std::int64_t LeastAskedCache() const {
    const std::int64_t least = LeastCache(least_);
    if (CacheYields(given_)) return least;
    return (least + asked_block_ - 1) / asked_block_ * asked_block_;
  }
  void SetCache(std::int64_t size) {
    least_.eviction->max_cache_size = size;
    for (std::int64_t& layer : least_.eviction->layer_max_cache_size) layer = size;
  }
  bool Fits(const EngineConfig& config) const { return Needed(config) <= spec_.trained_window; }

  [[noreturn]] void Say(std::string_view field, std::int64_t value, std::int64_t most) const {
    const EvictionConfig& eviction = *given_.eviction;
    const bool is_cache = field.ends_with("max_cache_size");
    std::string what = " leaves no room for a cache: with the least one it comes";
    if (is_cache) {
      what = eviction.budget == Budget::kUniform
                 ? ""
                 : fmt::format(", split as budget {} does,", Name(eviction.budget));
      what += fmt::format(" and a chunk of {}", given_.chunk_size);
      if (given_.recall.blocks > 0)
        what += fmt::format(" and {} recalled blocks of {}", given_.recall.blocks,
                            given_.cache.block_size);
      what += " can come";
    }
    carousel::Refuse(field, fmt::format("{}{} to {} positions, more than the {} that the model was "
                                        "trained on; use at most {}",
                                        value, what, Needed(is_cache ? given_ : least_before_),
                                        spec_.trained_window, most));
  }

  void MendCache() {
    EvictionConfig& eviction = *least_.eviction;
    const std::vector<std::int64_t> of_layers = eviction.layer_max_cache_size;
    const auto capped = [&](std::int64_t size) {
      for (std::size_t i = 0; i < of_layers.size(); ++i)
        eviction.layer_max_cache_size[i] = std::min(of_layers[i], size);
      if (of_layers.empty()) eviction.max_cache_size = size;
      return Fits(least_);
    };
    const std::int64_t given = of_layers.empty()
                                   ? eviction.max_cache_size
                                   : *std::max_element(of_layers.begin(), of_layers.end());
    if (const auto most = Largest(LeastAskedCache(), asked_block_, given, capped))
      Say(of_layers.empty() ? "max_cache_size" : "layer_max_cache_size", given, *most);
    capped(LeastAskedCache());
    least_before_ = least_;
  }

  void MendChunk() {
    if (given_.yields.chunk_size) return;
    const std::int64_t given = least_.chunk_size;
    const auto most = Largest(asked_block_, 1, given, [&](std::int64_t size) {
      least_.chunk_size = size;
      return Fits(least_);
    });
    if (most) Say("chunk_size", given, *most);
    least_.chunk_size = asked_block_;
    least_before_ = least_;
  }

  void MendRecall() {
    const std::int64_t given = least_.recall.blocks;
    const auto most = Largest(0, 1, given, [&](std::int64_t blocks) {
      least_.recall.blocks = blocks;
      return Fits(least_);
    });
    if (most) Say("recall_blocks", given, *most);
    least_.recall.blocks = 0;
    least_before_ = least_;
  }

  // The cache shrinks with what stays in it.
  void MendArea(std::string_view field, bool yields, std::int64_t EvictionConfig::*area) {
    if (yields) return;
    const std::int64_t given = (*least_.eviction).*area;
    const auto set = [&](std::int64_t size) {
      (*least_.eviction).*area = size;
      SetCache(LeastAskedCache());
      return Fits(least_);
    };
    if (const auto most = Largest(asked_block_, asked_block_, given, set)) Say(field, given, *most);
    set(asked_block_);
    least_before_ = least_;
  }

  void MendBlock() {
    const std::int64_t given = least_.cache.block_size;
    const std::int64_t multiple = KeyTokensMultiple(least_.cache.key_type);
    const auto set = [&](std::int64_t block) {
      EvictionConfig& eviction = *least_.eviction;
      least_.cache.block_size = least_.chunk_size = block;
      eviction.start_size = eviction.recent_size = block;
      SetCache(LeastCache(least_));
      return Fits(least_);
    };
    if (const auto most = Largest(multiple, multiple, given, set)) Say("block_size", given, *most);
    set(multiple);
  }

  const ModelSpec& spec_;
  const EngineConfig given_;
  const std::int64_t asked_block_;
  EngineConfig least_;         // what was tried is at its least
  EngineConfig least_before_;  // the same before the size that is tried now
};

}  // namespace

void CheckFitsWindow(const ModelSpec& spec, const EngineConfig& config,
                     std::int64_t asked_block_size) {
  if (MostPositions(spec, config, config.recall.blocks) <= spec.trained_window) return;
  WindowMend(spec, config, asked_block_size).Refuse();
}

}  // namespace carousel
