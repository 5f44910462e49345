// SPDX-License-Identifier: Apache-2.0
// Settings' values as texts and as numbers, whatever their types are.
#pragma once

#include <cstdint>
#include <optional>
#include <string>
#include <string_view>
#include <variant>
#include <vector>

#include "config/setting.h"

namespace carousel {

// A choice is its name.
using SettingValue =
    std::variant<std::int64_t, std::uint64_t, double, std::string, std::vector<std::int64_t>>;

// nullopt: the struct that it is in is not there.
std::optional<SettingValue> ValueOf(const Setting& setting, SettingsView from);
// What the structs hold where nobody sets anything.
SettingValue DefaultOf(const Setting& setting);
// CHECKs that the struct is there and that the value has the setting's type. Throws carousel::Error
// for a name that is none of the choice's. Ranges are Validate's.
void SetValue(const Setting& setting, const SettingValue& value, SettingsTarget to);

// What flags and variables say. Throws carousel::Error (kInvalidArgument), the setting's name its
// field, for what cannot be read.
SettingValue ReadValue(const Setting& setting, std::string_view text);
// The inverse. nullopt: there is no text for it.
std::optional<std::string> TextOf(const Setting& setting, const SettingValue& value);

// Throws carousel::Error for the first setting of a group whose value is outside the range in the
// table. What depends on other settings is left out.
void CheckRanges(SettingGroup group, SettingsView settings);

// The parts that ReadValue is made of. Each throws carousel::Error with `field`.
std::int64_t ReadWhole(std::string_view field, std::string_view text);
std::uint64_t ReadUnsigned(std::string_view field, std::string_view text);
double ReadReal(std::string_view field, std::string_view text);         // finite
std::int64_t ReadBytes(std::string_view field, std::string_view text);  // 4096, 64K, 1G; not 0
void RequireOneOf(std::string_view field, std::string_view text,
                  const std::vector<std::string_view>& names);

}  // namespace carousel
