// SPDX-License-Identifier: Apache-2.0
// What an error proposes in place of what it refuses, and settings that follow it.
#pragma once

#include <cstdint>
#include <cstdlib>
#include <optional>
#include <string>
#include <variant>
#include <vector>

#include "carousel/config.h"
#include "carousel/error.h"
#include "config/config_draft.h"
#include "config/setting_table.h"
#include "config/setting_value.h"

namespace carousel {

// The numbers behind the last semicolon of a problem: "... 500 is ...; use 480 or 512".
inline std::vector<double> ProposedNumbers(const std::string& problem) {
  std::vector<double> numbers;
  const std::size_t begin = problem.rfind("; ");
  if (begin == std::string::npos) return numbers;
  const char* at = problem.c_str() + begin;
  while (*at != '\0') {
    char* end = nullptr;
    const bool is_word = at[-1] != ' ';
    const double number = std::strtod(at, &end);
    if (!is_word && end != at && at[0] != ' ') numbers.push_back(number);
    at = end == at || at[0] == ' ' ? at + 1 : end;
  }
  return numbers;
}

// `config` with a proposed number in `field`, which then no longer yields. nullopt: the field is
// not a number.
inline std::optional<EngineConfig> WithField(const EngineConfig& config, const std::string& field,
                                             double number) {
  const auto whole = static_cast<std::int64_t>(number);
  const Setting* const setting = FindSetting(field);
  if (setting == nullptr) return std::nullopt;
  ConfigDraft draft{.config = config};
  draft.NoteGiven(*setting);
  const SettingsTarget target{.engine = &draft.config};
  std::optional<SettingValue> value = ValueOf(*setting, target.view());
  if (!value) return draft.config;  // nothing is evicted
  if (std::holds_alternative<std::int64_t>(*value)) {
    value = whole;
  } else if (std::holds_alternative<double>(*value)) {
    value = number;
  } else if (auto* sizes = std::get_if<std::vector<std::int64_t>>(&*value)) {
    // The first that is at fault is not known; the largest and all below it may be.
    for (std::int64_t& layer : *sizes) layer = whole;
  } else {
    return std::nullopt;
  }
  SetValue(*setting, *value, target);
  return draft.config;
}

}  // namespace carousel
