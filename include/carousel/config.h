// SPDX-License-Identifier: Apache-2.0
// Every knob of the engine. Sizes are in tokens unless the name says otherwise.
#pragma once

#include <cstdint>
#include <optional>
#include <string>
#include <string_view>
#include <vector>

namespace carousel {

// How a block's importance grows with the attention mass that it receives.
enum class Aggregation {
  kSum,      // the sum over all counted queries
  kNormSum,  // the sum divided by the number of counted queries that could see the block
};

// How survivors of an eviction reach contiguous positions (docs/design: the two exact ways).
enum class Rotation {
  kAuto,   // query rotation where the probe proves RoPE, off elsewhere
  kQuery,  // queries are rotated per run of blocks; keys are never rewritten
  kKeys,   // surviving keys are rewritten after each eviction
  kOff,    // nothing is rotated
};

// Where a kept token stands for attention.
enum class PositionPolicy {
  // kCompact where blocks are recalled: short distances are what models know best. Else kKeep while
  // the stream is inside the trained window, kCompact before it ends.
  kAuto,
  kKeep,     // its logical position; leaves the trained window on a long stream
  kCompact,  // its place among what is kept
};

// When a prompt is evicted.
enum class PromptEviction {
  kCapped,  // between chunks: the cache never exceeds max_cache_size by more than one chunk
  kAtEnd,   // once, after the whole prompt, by the attention of the prompt's last tokens
};

// Which KV heads keep and lose their blocks together.
enum class Grouping {
  kLayer,  // all of a layer's
  kHead,   // each on its own
};

// How the cache is split between the layers and their KV heads; what all hold together is the same.
enum class Budget {
  kUniform,   // max_cache_size each
  kPyramid,   // more for lower layers, less for upper ones (PyramidKV, Cai et al. 2024)
  kAdaptive,  // within a layer the heads share: the highest scores of all stay (Ada-KV, Feng et al.
              // 2024); implies a cache group per KV head
};

// What KVCrush measures a block's distance from.
enum class KvCrushAnchor { kRandom, kZeros, kOnes, kMean, kAlternating };

// How keys or values are held (src/cache/plane_layout.h).
enum class KvType {
  kF32,
  kF16,
  kBf16,
  kInt8,  // 8 bits and a scale per token and head
  kInt4,  // 4 bits, a scale and an offset: keys per channel and half a block, values per half token
};

// The reference's eviction (start, evictable and recent areas) with its sizes, and what the
// policies take besides. Which policy is the default, and why: docs/decisions (defaults).
struct EvictionConfig {
  std::int64_t start_size = 32;    // attention sinks, never evicted; multiple of block_size, > 0
  std::int64_t recent_size = 128;  // the newest tokens, never evicted; multiple of block_size, > 0
  // Of layers without a sliding window: those with one keep all that their queries can see.
  std::int64_t max_cache_size =
      672;  // per layer and KV head; multiple of block_size, > start_size + recent_size
  // Who goes: a name of src/eviction/registry.h, where --help has a line for each.
  std::string policy = "tova";
  std::uint64_t policy_seed = 0;                    // random, KVCrush's random anchor
  Aggregation aggregation = Aggregation::kNormSum;  // snapkv, h2o
  // snapkv, adaptive_rkv: how many of a chunk's (kAtEnd: of the prompt's) last queries vote; 0: all
  // of them, in snapkv unpooled.
  std::int64_t snapkv_window = 8;
  // Width in tokens of the max-pooling over neighbours that SnapKV applies to votes; odd, 1: none.
  std::int64_t pooling_width = 7;
  double rkv_attention_mass = 0.9;  // adaptive_rkv: the part that attention alone saves; [0, 1]
  std::int64_t rkv_window = 8;      // adaptive_rkv: steps that are averaged; in [1, 1024]
  std::int64_t expected_positions = 512;  // expected_attention: how far ahead; in [1, 65536]
  // Blocks of the cache that KVCrush chooses, within a group; 0: none. Not with adaptive_rkv.
  std::int64_t kvcrush_budget = 0;
  KvCrushAnchor kvcrush_anchor = KvCrushAnchor::kRandom;
  Budget budget = Budget::kUniform;
  // adaptive: the part of its even share of the evictable area that each head keeps; [0, 1].
  double budget_floor = 0.2;
  // pyramid: how many times smaller than the mean the smallest evictable area is; >= 1.
  double budget_slope = 20.0;
  Rotation rotation = Rotation::kAuto;
  PositionPolicy positions = PositionPolicy::kAuto;
  PromptEviction prompt_eviction = PromptEviction::kCapped;
  Grouping grouping = Grouping::kLayer;
  // Overrides max_cache_size layer by layer; empty: the same for all. Same rules as max_cache_size.
  std::vector<std::int64_t> layer_max_cache_size;
};

struct CacheConfig {
  std::int64_t block_size = 32;  // tokens in a block; a multiple of 8, at most 256
  KvType key_type = KvType::kF16;
  KvType value_type = KvType::kF16;
  // Hard limits on what the pool may ever hold, over all layers together (bytes) or per layer
  // (tokens). 0: no limit beyond what the eviction settings and the machine's memory imply.
  std::int64_t limit_bytes = 0;
  std::int64_t limit_tokens = 0;
};

// Forgotten is not lost: evicted blocks go to a second tier, and each KV head of each layer brings
// back for a step those that the step's queries would give most attention to. Recalled blocks stand
// beside what is resident, in stream order, by query rotation; their keys are never rewritten.
// Layers with a sliding window recall nothing: what leaves the window cannot be seen.
struct RecallConfig {
  std::int64_t blocks = 0;  // that a KV head may bring back at once; 0: off
  // Where the model or the rotation leave no room for so many: take fewer, or none, and do not
  // refuse.
  bool yields = false;
  // Who chooses when. Tokens of a prompt share a choice: so many, or up to four times as many where
  // a KV head gains little by choosing. A token of an answer chooses for itself, or for up to
  // `every` tokens.
  std::int64_t chunk = 16;
  std::int64_t queries = 16;  // how many of those tokens choose for all of them: the last ones
  std::int64_t every = 16;    // most tokens of an answer from one choice to the next
  // Gaining little: when a choice gives recalled blocks less than so much more of the head's
  // attention than the former choice would have, the next one comes after twice as many tokens. Of
  // an answer's tokens five times as much is asked. In [0, 1]; 0: as often as a head may.
  double least_gain = 0.01;
  // A recalled block moves back into the cache, when its layer (with grouping head: its KV head)
  // evicts, for a block that it was given so many times the attention of since the last eviction,
  // by the queries that the policy counts. 0: never.
  double promotion = 2.0;
  // Where evicted blocks are kept: a new file; empty: memory. Where there is no room for more, the
  // oldest go first, as at the limits, and EngineMetrics::recall_limited_by says why.
  std::string store_file;
  std::int64_t limit_bytes = 0;   // of the second tier; the oldest go first; 0: none
  std::int64_t limit_tokens = 0;  // likewise, of each KV head; 0: none, else at least block_size
  // How the second tier holds keys and values. nullopt: int8, or as the cache does where that is
  // int8 or int4.
  std::optional<KvType> kv_type;
};

// Which sizes give way to others and to the model's trained window: defaults, that nobody asked
// for. They are made smaller (never larger) where the window has no room, the block size as well,
// and the start and recent areas where they would fill the cache. Engine::config() has what came of
// it. Sizes that do not yield are refused.
struct YieldingSizes {
  bool block_size = false;
  bool chunk_size = false;
  bool start_size = false;
  bool recent_size = false;
  bool max_cache_size = false;
};
inline constexpr YieldingSizes kAllSizesYield = {true, true, true, true, true};

struct EngineConfig {
  CacheConfig cache;
  std::optional<EvictionConfig> eviction = EvictionConfig{};  // nullopt: keep everything
  RecallConfig recall;                                        // only beside eviction
  std::int64_t chunk_size = 256;  // most tokens of a prompt in one step; at least block_size
  YieldingSizes yields;
};

// Throws carousel::Error (kInvalidArgument) that names the first field at fault, its value, the
// limit and the nearest legal value. Needs no model; Engine::Create checks what depends on one, and
// all of it again once the sizes that yield are settled.
void Validate(const EngineConfig& config);

// The names that flags, environment variables and JSON use ("norm_sum", "query", "at_end", ...).
std::string_view Name(Aggregation value);
std::string_view Name(Rotation value);
std::string_view Name(PositionPolicy value);
std::string_view Name(PromptEviction value);
std::string_view Name(Grouping value);
std::string_view Name(Budget value);
std::string_view Name(KvCrushAnchor value);
std::string_view Name(KvType value);
// The inverse. nullopt when there is no such name.
std::optional<Aggregation> ParseAggregation(std::string_view name);
std::optional<Rotation> ParseRotation(std::string_view name);
std::optional<PositionPolicy> ParsePositionPolicy(std::string_view name);
std::optional<PromptEviction> ParsePromptEviction(std::string_view name);
std::optional<Grouping> ParseGrouping(std::string_view name);
std::optional<Budget> ParseBudget(std::string_view name);
std::optional<KvCrushAnchor> ParseKvCrushAnchor(std::string_view name);
std::optional<KvType> ParseKvType(std::string_view name);

}  // namespace carousel
