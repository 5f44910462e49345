// SPDX-License-Identifier: Apache-2.0
// What one setting is: all that flags, variables, JSON, checks, fuzzers and summaries need of it.
// setting_table.h has them all.
#pragma once

#include <cstddef>
#include <cstdint>
#include <string>
#include <string_view>
#include <variant>
#include <vector>

#include "carousel/beam_params.h"
#include "carousel/config.h"
#include "carousel/request.h"

namespace carousel {

// The structs that settings live in. nullptr: not there.
struct SettingsView {
  const EngineConfig* engine = nullptr;
  const SamplingParams* sampling = nullptr;
  const BeamParams* beams = nullptr;
};
struct SettingsTarget {
  EngineConfig* engine = nullptr;
  SamplingParams* sampling = nullptr;
  BeamParams* beams = nullptr;
  SettingsView view() const { return {.engine = engine, .sampling = sampling, .beams = beams}; }
};

// Part of the settings, as the help groups them.
enum class SettingGroup { kEviction, kRecall, kCache, kScheduling, kSampling, kBeams };

// A setting's place in its struct.
template <typename Value>
using Member = std::variant<Value CacheConfig::*, Value EvictionConfig::*, Value RecallConfig::*,
                            Value EngineConfig::*, Value SchedulerConfig::*,
                            Value SamplingParams::*, Value BeamParams::*>;

// One of a few, by name.
struct Choice {
  std::vector<std::string_view> names;
  // An index into names; -1: the struct is not there.
  std::ptrdiff_t (*get)(SettingsView from) = nullptr;
  // False: the struct is not there.
  bool (*set)(std::size_t index, SettingsTarget to) = nullptr;
};

using Place = std::variant<Member<std::int64_t>, Member<std::uint64_t>, Member<double>,
                           Member<std::string>, Member<std::vector<std::int64_t>>, Choice>;

// How a value outside its range is told.
enum class RangeText {
  kNearest,  // "31 is too small; the least is 32"
  kFromTo,   // "0 is out of range; use a number from 1 to 1024"
  kDefault,  // "2 is outside 0 to 1; use 0.9": what the structs hold where nobody sets it
  kBracket,  // "-1 is outside [0, 100]; use a number between them"
};

// [least, most]
struct WholeRange {
  std::int64_t least = 0;
  std::int64_t most = 0;
  RangeText text = RangeText::kNearest;
};
// [least, most]; (least, most] where it is open. A NaN is outside.
struct RealRange {
  double least = 0.0;
  double most = 0.0;
  RangeText text = RangeText::kDefault;
  bool open = false;
  std::string_view besides = "";  // what may be proposed besides: "0 for never"
};

struct Setting {
  std::string_view name;        // of errors and of JSON: "max_cache_size"
  std::string_view flag;        // "--max-cache-size", aliases behind commas; empty: it has none
  std::string_view value_name;  // "N", in the help
  SettingGroup group = SettingGroup::kEviction;
  bool common = false;  // what most people use, so --help has it and not --help-all alone
  Place place;
  std::variant<std::monostate, WholeRange, RealRange> range;  // of numbers
  std::string help;
  // What the help says of the default in brackets; {} stands for its text.
  std::string default_text = "default {}";
  // Lines below the help that are not known beforehand; nullptr: none.
  std::string (*more_help)() = nullptr;
  // Its limits hang on other settings: Validate has code for them, and `range` is their widest.
  bool depends = false;
  bool in_bytes = false;                  // may be written as 64M or 1G
  bool zero_is_unset = false;             // 0 stands for nothing given, and has no text
  std::string_view empty_word;            // how an empty text is written
  bool YieldingSizes::*yields = nullptr;  // becomes false where it is given
};

}  // namespace carousel
