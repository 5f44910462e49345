// SPDX-License-Identifier: Apache-2.0
#include "carousel/enums.h"

#include <array>
#include <cstddef>
#include <utility>

namespace carousel {
namespace {

template <typename Enum>
using NameTable = std::pair<Enum, std::string_view>;

constexpr std::array<NameTable<Aggregation>, 2> kAggregations = {
    {{Aggregation::kSum, "sum"}, {Aggregation::kNormSum, "norm_sum"}}};
constexpr std::array<NameTable<Rotation>, 4> kRotations = {{{Rotation::kAuto, "auto"},
                                                            {Rotation::kQuery, "query"},
                                                            {Rotation::kKeys, "keys"},
                                                            {Rotation::kOff, "off"}}};
constexpr std::array<NameTable<PositionPolicy>, 3> kPositions = {
    {{PositionPolicy::kAuto, "auto"},
     {PositionPolicy::kKeep, "keep"},
     {PositionPolicy::kCompact, "compact"}}};
constexpr std::array<NameTable<PromptEviction>, 2> kPromptEvictions = {
    {{PromptEviction::kCapped, "capped"}, {PromptEviction::kAtEnd, "at_end"}}};
constexpr std::array<NameTable<Grouping>, 2> kGroupings = {
    {{Grouping::kLayer, "layer"}, {Grouping::kHead, "head"}}};
constexpr std::array<NameTable<Budget>, 3> kBudgets = {{{Budget::kUniform, "uniform"},
                                                        {Budget::kPyramid, "pyramid"},
                                                        {Budget::kAdaptive, "adaptive"}}};
constexpr std::array<NameTable<KvCrushAnchor>, 5> kAnchors = {
    {{KvCrushAnchor::kRandom, "random"},
     {KvCrushAnchor::kZeros, "zeros"},
     {KvCrushAnchor::kOnes, "ones"},
     {KvCrushAnchor::kMean, "mean"},
     {KvCrushAnchor::kAlternating, "alternating"}}};
constexpr std::array<NameTable<KvType>, 5> kKvTypes = {{{KvType::kF32, "f32"},
                                                        {KvType::kF16, "f16"},
                                                        {KvType::kBf16, "bf16"},
                                                        {KvType::kInt8, "int8"},
                                                        {KvType::kInt4, "int4"}}};
constexpr std::array<NameTable<StopCriteria>, 3> kStopCriteria = {
    {{StopCriteria::kEarly, "early"},
     {StopCriteria::kHeuristic, "heuristic"},
     {StopCriteria::kNever, "never"}}};

template <typename Table, typename Enum>
std::string_view NameIn(const Table& table, Enum value) {
  for (const auto& [entry, name] : table) {
    if (entry == value) return name;
  }
  return "";
}

template <typename Enum, std::size_t kCount>
std::optional<Enum> ParseIn(const std::array<NameTable<Enum>, kCount>& table,
                            std::string_view text) {
  for (const auto& [entry, name] : table) {
    if (name == text) return entry;
  }
  return std::nullopt;
}

}  // namespace

std::string_view Name(Aggregation value) { return NameIn(kAggregations, value); }
std::string_view Name(Rotation value) { return NameIn(kRotations, value); }
std::string_view Name(PositionPolicy value) { return NameIn(kPositions, value); }
std::string_view Name(PromptEviction value) { return NameIn(kPromptEvictions, value); }
std::string_view Name(Grouping value) { return NameIn(kGroupings, value); }
std::string_view Name(Budget value) { return NameIn(kBudgets, value); }
std::string_view Name(KvCrushAnchor value) { return NameIn(kAnchors, value); }
std::string_view Name(KvType value) { return NameIn(kKvTypes, value); }
std::string_view Name(StopCriteria value) { return NameIn(kStopCriteria, value); }

std::optional<Aggregation> ParseAggregation(std::string_view name) {
  return ParseIn(kAggregations, name);
}
std::optional<Rotation> ParseRotation(std::string_view name) { return ParseIn(kRotations, name); }
std::optional<PositionPolicy> ParsePositionPolicy(std::string_view name) {
  return ParseIn(kPositions, name);
}
std::optional<PromptEviction> ParsePromptEviction(std::string_view name) {
  return ParseIn(kPromptEvictions, name);
}
std::optional<Grouping> ParseGrouping(std::string_view name) { return ParseIn(kGroupings, name); }
std::optional<Budget> ParseBudget(std::string_view name) { return ParseIn(kBudgets, name); }
std::optional<KvCrushAnchor> ParseKvCrushAnchor(std::string_view name) {
  return ParseIn(kAnchors, name);
}
std::optional<KvType> ParseKvType(std::string_view name) { return ParseIn(kKvTypes, name); }
std::optional<StopCriteria> ParseStopCriteria(std::string_view name) {
  return ParseIn(kStopCriteria, name);
}

}  // namespace carousel
