// SPDX-License-Identifier: Apache-2.0
// Bytes as settings: Validate accepts them or throws Error, and what it accepts keeps its promises.
#include <algorithm>
#include <optional>
#include <string>
#include <variant>
#include <vector>

#include "base/check.h"
#include "carousel/beam_params.h"
#include "carousel/config.h"
#include "carousel/error.h"
#include "carousel/request.h"
#include "config/setting_table.h"
#include "config/setting_value.h"
#include "eviction/budget.h"
#include "eviction/registry.h"
#include "fuzz/fuzz_input.h"
#include "fuzz/fuzz_target.h"

namespace carousel {
namespace {

// A value for a setting of any type: any at all, and often a plausible one.
SettingValue ReadSetting(const Setting& setting, FuzzInput* input) {
  const SettingValue value = DefaultOf(setting);
  if (const auto* choice = std::get_if<Choice>(&setting.place))
    return std::string(choice->names[input->Bits(1) % choice->names.size()]);
  if (std::holds_alternative<std::int64_t>(value)) return input->Integer();
  if (std::holds_alternative<std::uint64_t>(value)) return input->Bits(8);
  if (std::holds_alternative<double>(value)) return input->Real();
  if (std::holds_alternative<std::string>(value)) {
    // Mostly a policy that there is.
    const std::vector<PolicyEntry>& policies = RegisteredPolicies();
    const std::size_t index = input->Bits(1) % (policies.size() + 2);
    return index < policies.size() ? policies[index].name : std::string(index % 2, 'x');
  }
  std::vector<std::int64_t> sizes(input->Bits(1) % 4);
  for (std::int64_t& size : sizes) size = input->Integer();
  return sizes;
}

// The bytes from which ReadSetting makes a setting's default.
std::string BytesOfDefault(const Setting& setting) {
  const SettingValue value = DefaultOf(setting);
  const auto bytes_of = [](auto number, std::size_t count) {
    return std::string(reinterpret_cast<const char*>(&number), count);
  };
  if (const auto* choice = std::get_if<Choice>(&setting.place)) {
    const auto at =
        std::find(choice->names.begin(), choice->names.end(), std::get<std::string>(value));
    return bytes_of(at - choice->names.begin(), 1);
  }
  if (const auto* whole = std::get_if<std::int64_t>(&value)) {
    if (*whole >= 0 && *whole % 8 == 0 && *whole < 1024) return bytes_of(*whole / 8, 1);
    CAROUSEL_CHECK(*whole >= -1000 && *whole < 60000);
    return '\x80' + bytes_of(*whole + 1000, 2);
  }
  if (const auto* seed = std::get_if<std::uint64_t>(&value)) return bytes_of(*seed, 8);
  if (const auto* real = std::get_if<double>(&value)) return '\xFF' + bytes_of(*real, 8);
  if (const auto* text = std::get_if<std::string>(&value)) {
    std::uint64_t index = 0;
    while (index < RegisteredPolicies().size() && RegisteredPolicies()[index].name != *text)
      ++index;
    return bytes_of(index, 1);
  }
  return std::string(1, '\0');
}

EngineConfig ReadEngineConfig(FuzzInput* input) {
  EngineConfig config;
  const bool keeps_all = input->Bits(1) % 4 == 3;
  config.recall.yields = input->Bits(1) % 2 == 1;
  for (const Setting& setting : SettingTable()) {
    if (setting.group == SettingGroup::kSampling || setting.group == SettingGroup::kBeams) continue;
    SetValue(setting, ReadSetting(setting, input), {.engine = &config});
  }
  if (keeps_all) config.eviction.reset();
  return config;
}

SamplingParams ReadSamplingParams(FuzzInput* input) {
  SamplingParams params;
  for (const Setting& setting : SettingTable()) {
    if (setting.group != SettingGroup::kSampling) continue;
    SetValue(setting, ReadSetting(setting, input), {.sampling = &params});
  }
  return params;
}

BeamParams ReadBeamParams(FuzzInput* input) {
  BeamParams params;
  for (const Setting& setting : SettingTable()) {
    if (setting.group != SettingGroup::kBeams) continue;
    SetValue(setting, ReadSetting(setting, input), {.beams = &params});
  }
  return params;
}

// Whether Validate accepts. What it refuses it names.
template <typename Settings>
bool Accepts(const Settings& settings) {
  try {
    Validate(settings);
  } catch (const Error& error) {
    CAROUSEL_CHECK(error.code() == ErrorCode::kInvalidArgument);
    CAROUSEL_CHECK(!error.field().empty() && !error.problem().empty());
    return false;
  }
  return true;
}

bool IsWithin(const Setting& setting, const SettingValue& value) {
  if (const auto* whole = std::get_if<WholeRange>(&setting.range))
    return std::get<std::int64_t>(value) >= whole->least &&
           std::get<std::int64_t>(value) <= whole->most;
  if (const auto* real = std::get_if<RealRange>(&setting.range))
    return std::get<double>(value) >= real->least && std::get<double>(value) <= real->most &&
           !(real->open && std::get<double>(value) == real->least);
  return true;
}

// What was accepted is in its range, and its text says it again.
void CheckEach(SettingsView settings) {
  for (const Setting& setting : SettingTable()) {
    const std::optional<SettingValue> value = ValueOf(setting, settings);
    if (!value) continue;
    CAROUSEL_CHECK(IsWithin(setting, *value));
    if (const std::optional<std::string> text = TextOf(setting, *value))
      CAROUSEL_CHECK(ReadValue(setting, *text) == *value);
  }
}

// What include/carousel/config.h promises of accepted sizes beyond their ranges.
void CheckAccepted(const EngineConfig& config) {
  CheckEach({.engine = &config});
  const std::int64_t block = config.cache.block_size;
  CAROUSEL_CHECK(block % 8 == 0);
  CAROUSEL_CHECK_GE(config.chunk_size, block);
  if (!config.eviction) return;
  const EvictionConfig& eviction = *config.eviction;
  for (const std::int64_t size :
       {eviction.start_size, eviction.recent_size, eviction.max_cache_size})
    CAROUSEL_CHECK(size % block == 0);
  CAROUSEL_CHECK_GT(eviction.max_cache_size, eviction.start_size + eviction.recent_size);
  CAROUSEL_CHECK(eviction.pooling_width % 2 == 1);
  CAROUSEL_CHECK(FindPolicy(eviction.policy) != nullptr);
  CAROUSEL_CHECK(eviction.kvcrush_budget == 0 || eviction.policy != "adaptive_rkv");
  // Whatever the split, it gives out what there is, in whole blocks, and each layer can evict.
  if (eviction.layer_max_cache_size.empty()) {
    std::int64_t total = 0;
    for (const std::int64_t size : LayerSizes(eviction, 7, block)) {
      CAROUSEL_CHECK(size % block == 0 && size > eviction.start_size + eviction.recent_size);
      total += size / block;
    }
    CAROUSEL_CHECK_EQ(total, 7 * (eviction.max_cache_size / block));
  }
  for (const std::int64_t size : eviction.layer_max_cache_size)
    CAROUSEL_CHECK(size % block == 0 && size > eviction.start_size + eviction.recent_size);
  CAROUSEL_CHECK(config.recall.limit_tokens == 0 || config.recall.limit_tokens >= block ||
                 config.recall.blocks == 0);
}

void CheckAccepted(const SamplingParams& params) { CheckEach({.sampling = &params}); }

void CheckAccepted(const BeamParams& params) {
  CheckEach({.beams = &params});
  CAROUSEL_CHECK_EQ(params.num_beams % params.num_beam_groups, 0);
  CAROUSEL_CHECK_LE(params.num_return_sequences, params.num_beams);
}

}  // namespace

std::vector<std::string> FuzzSeeds() {
  // The defaults, whole and cut off, with nothing evicted, and two that are refused.
  std::string config(2, '\0');
  std::string sampling;
  std::string beams;
  for (const Setting& setting : SettingTable()) {
    const bool is_of_engine =
        setting.group != SettingGroup::kSampling && setting.group != SettingGroup::kBeams;
    (is_of_engine                               ? config
     : setting.group == SettingGroup::kSampling ? sampling
                                                : beams) += BytesOfDefault(setting);
  }
  const std::string defaults = config + sampling + beams;
  FuzzInput input(reinterpret_cast<const std::uint8_t*>(defaults.data()), defaults.size());
  CAROUSEL_CHECK(Accepts(ReadEngineConfig(&input)) && Accepts(ReadSamplingParams(&input)) &&
                 Accepts(ReadBeamParams(&input)));
  std::string keeps_all = config;
  keeps_all[0] = 3;
  return {defaults, keeps_all + sampling, config, std::string(30, '\0'), std::string(80, '\x7F')};
}

}  // namespace carousel

extern "C" int LLVMFuzzerTestOneInput(const std::uint8_t* data, std::size_t size) {
  using namespace carousel;
  FuzzInput input(data, size);
  const EngineConfig config = ReadEngineConfig(&input);
  if (Accepts(config)) CheckAccepted(config);
  const SamplingParams params = ReadSamplingParams(&input);
  if (Accepts(params)) CheckAccepted(params);
  const BeamParams beams = ReadBeamParams(&input);
  if (Accepts(beams)) CheckAccepted(beams);
  return 0;
}
