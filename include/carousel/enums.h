// SPDX-License-Identifier: Apache-2.0
// What can be chosen among a few: each with the name that flags, environment variables and JSON
// use.
#pragma once

#include <optional>
#include <string_view>

namespace carousel {

// How a block's importance grows with the attention mass that it receives.
enum class Aggregation {
  kSum,      // the sum over all counted queries
  kNormSum,  // the sum divided by the number of counted queries that could see the block
};

// How survivors of an eviction reach contiguous positions (docs/architecture.md: the two exact
// ways).
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

// When a group of beams ends although some of them could go on, once as many answers as it has
// beams have ended.
enum class StopCriteria {
  kEarly,      // at once
  kHeuristic,  // when the best of those that go on is no better, at its length, than the worst
               // answer
  kNever,      // only when none of those that go on can become better than the worst answer
};

// The names that flags, environment variables and JSON use ("norm_sum", "query", "at_end", ...).
std::string_view Name(Aggregation value);
std::string_view Name(Rotation value);
std::string_view Name(PositionPolicy value);
std::string_view Name(PromptEviction value);
std::string_view Name(Grouping value);
std::string_view Name(Budget value);
std::string_view Name(KvCrushAnchor value);
std::string_view Name(KvType value);
std::string_view Name(StopCriteria value);
// The inverse. nullopt when there is no such name.
std::optional<Aggregation> ParseAggregation(std::string_view name);
std::optional<Rotation> ParseRotation(std::string_view name);
std::optional<PositionPolicy> ParsePositionPolicy(std::string_view name);
std::optional<PromptEviction> ParsePromptEviction(std::string_view name);
std::optional<Grouping> ParseGrouping(std::string_view name);
std::optional<Budget> ParseBudget(std::string_view name);
std::optional<KvCrushAnchor> ParseKvCrushAnchor(std::string_view name);
std::optional<KvType> ParseKvType(std::string_view name);
std::optional<StopCriteria> ParseStopCriteria(std::string_view name);

}  // namespace carousel
