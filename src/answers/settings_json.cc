// SPDX-License-Identifier: Apache-2.0
#include "answers/settings_json.h"

#include <fmt/format.h>

#include <cstdint>
#include <nlohmann/json.hpp>
#include <optional>
#include <string>
#include <string_view>
#include <variant>
#include <vector>

#include "base/nearest_name.h"
#include "carousel/error.h"
#include "config/setting_table.h"
#include "config/setting_value.h"

namespace carousel {
namespace {

using nlohmann::json;

constexpr const char* kEviction = "eviction";

[[noreturn]] void Refuse(std::string_view member, const std::string& problem) {
  throw Error(ErrorCode::kInvalidArgument, member, problem);
}

std::int64_t WholeOf(std::string_view member, const json& value) {
  const bool fits = value.is_number_integer() &&
                    !(value.is_number_unsigned() && value.get<std::uint64_t>() > INT64_MAX);
  if (!fits) Refuse(member, fmt::format("{} is not a whole number", value.dump()));
  return value.get<std::int64_t>();
}

// The value that a member has, of the type of the setting's default.
SettingValue ValueOfMember(const Setting& setting, const json& value) {
  const std::string_view name = setting.name;
  const SettingValue type = DefaultOf(setting);
  if (std::holds_alternative<std::int64_t>(type)) {
    if (setting.in_bytes && value.is_string()) return ReadValue(setting, value.get<std::string>());
    return WholeOf(name, value);
  }
  if (std::holds_alternative<std::uint64_t>(type)) {
    if (!value.is_number_unsigned())
      Refuse(name, fmt::format("{} is not a whole number from 0 to 2^64 - 1", value.dump()));
    return value.get<std::uint64_t>();
  }
  if (std::holds_alternative<double>(type)) {
    if (!value.is_number()) Refuse(name, fmt::format("{} is not a number", value.dump()));
    return value.get<double>();
  }
  if (std::holds_alternative<std::string>(type)) {
    if (!value.is_string()) Refuse(name, fmt::format("{} is not a text", value.dump()));
    return value.get<std::string>();
  }
  if (!value.is_array())
    Refuse(name, fmt::format("{} is not an array of whole numbers", value.dump()));
  std::vector<std::int64_t> sizes;
  for (const json& size : value) sizes.push_back(WholeOf(name, size));
  return sizes;
}

// Which struct a group's settings are in.
enum class Owner { kEngine, kSampling, kBeams };
Owner OwnerOf(SettingGroup group) {
  if (group == SettingGroup::kSampling) return Owner::kSampling;
  return group == SettingGroup::kBeams ? Owner::kBeams : Owner::kEngine;
}

// The owner's setting that a member names.
const Setting& SettingOf(const std::string& member, Owner owner) {
  const auto is_wanted = [owner](const Setting& setting) {
    return OwnerOf(setting.group) == owner;
  };
  const Setting* const setting = FindSetting(member);
  if (setting != nullptr && is_wanted(*setting)) return *setting;
  std::vector<std::string> names;
  for (const Setting& other : SettingTable()) {
    if (is_wanted(other)) names.emplace_back(other.name);
  }
  const std::string nearest = NearestName(member, names);
  Refuse(member, nearest.empty() ? "is no such setting; leave it out"
                                 : fmt::format("is no such setting; did you mean {}?", nearest));
}

void RequireObject(const json& object) {
  if (!object.is_object())
    Refuse("settings", "are not a JSON object; write {\"name\": value, ...}");
}

}  // namespace

void WriteSettings(SettingGroup group, SettingsView settings, nlohmann::ordered_json* object) {
  if (group == SettingGroup::kEviction && settings.engine != nullptr)
    (*object)[kEviction] = settings.engine->eviction.has_value();
  for (const Setting& setting : SettingTable()) {
    if (setting.group != group) continue;
    const std::optional<SettingValue> value = ValueOf(setting, settings);
    if (!value) continue;
    std::visit([&](const auto& held) { (*object)[std::string(setting.name)] = held; }, *value);
  }
}

void ReadEngineSettings(const json& object, ConfigDraft* draft) {
  RequireObject(object);
  for (const auto& [member, value] : object.items()) {
    if (member == kEviction) {
      if (!value.is_boolean()) Refuse(member, fmt::format("{} is not true or false", value.dump()));
      draft->keeps_all = !value.get<bool>();
      continue;
    }
    const Setting& setting = SettingOf(member, Owner::kEngine);
    SetValue(setting, ValueOfMember(setting, value), {.engine = &draft->config});
    draft->NoteGiven(setting);
  }
}

void ReadSamplingSettings(const json& object, SamplingParams* params) {
  RequireObject(object);
  for (const auto& [member, value] : object.items()) {
    const Setting& setting = SettingOf(member, Owner::kSampling);
    SetValue(setting, ValueOfMember(setting, value), {.sampling = params});
  }
}

}  // namespace carousel
