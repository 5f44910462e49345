// SPDX-License-Identifier: Apache-2.0
#include "config/setting_value.h"

#include <fmt/format.h>
#include <fmt/ranges.h>

#include <algorithm>
#include <cctype>
#include <charconv>
#include <cmath>
#include <utility>

#include "base/check.h"
#include "carousel/error.h"
#include "config/members.h"
#include "config/setting_table.h"

namespace carousel {
namespace {

[[noreturn]] void Refuse(std::string_view field, const std::string& problem) {
  throw Error(ErrorCode::kInvalidArgument, field, problem);
}

template <typename Number>
std::optional<Number> ParseNumber(std::string_view text) {
  Number number{};
  const auto [end, error] = std::from_chars(text.data(), text.data() + text.size(), number);
  if (error != std::errc() || end != text.data() + text.size()) return std::nullopt;
  return number;
}

template <typename... Functions>
struct Overloaded : Functions... {
  using Functions::operator()...;
};
template <typename... Functions>
Overloaded(Functions...) -> Overloaded<Functions...>;

void CheckWhole(const Setting& setting, const WholeRange& range, std::int64_t value) {
  if (value >= range.least && value <= range.most) return;
  if (range.text == RangeText::kNearest) {
    Refuse(setting.name, value < range.least
                             ? fmt::format("{} is too small; the least is {}", value, range.least)
                             : fmt::format("{} is too large; the most is {}", value, range.most));
  }
  if (range.text == RangeText::kFromTo) {
    Refuse(setting.name, fmt::format("{} is out of range; use a number from {} to {}", value,
                                     range.least, range.most));
  }
  Refuse(setting.name, fmt::format("{} is outside [{}, {}]; use a number between them",
                                   static_cast<double>(value), static_cast<double>(range.least),
                                   static_cast<double>(range.most)));
}

void CheckReal(const Setting& setting, const RealRange& range, double value) {
  const bool is_large_enough = range.open ? value > range.least : value >= range.least;
  if (is_large_enough && value <= range.most) return;  // false for NaN
  if (range.open) {
    Refuse(setting.name, fmt::format("{} is outside ({}, {}]; use a number above {} and up to {}",
                                     value, range.least, range.most, range.least, range.most));
  }
  if (range.text == RangeText::kBracket) {
    Refuse(setting.name, fmt::format("{} is outside [{}, {}]; use a number between them", value,
                                     range.least, range.most));
  }
  Refuse(setting.name, fmt::format("{} is outside {} to {:.0f}; use {}{}{}", value, range.least,
                                   range.most, *TextOf(setting, DefaultOf(setting)),
                                   range.besides.empty() ? "" : ", or ", range.besides));
}

}  // namespace

std::optional<SettingValue> ValueOf(const Setting& setting, SettingsView from) {
  return std::visit(Overloaded{[&](const Choice& choice) -> std::optional<SettingValue> {
                                 const std::ptrdiff_t index = choice.get(from);
                                 if (index < 0) return std::nullopt;
                                 return std::string(choice.names[static_cast<std::size_t>(index)]);
                               },
                               [&](const auto& member) -> std::optional<SettingValue> {
                                 const auto* const value = ValueIn(member, from);
                                 if (value == nullptr) return std::nullopt;
                                 return *value;
                               }},
                    setting.place);
}

SettingValue DefaultOf(const Setting& setting) {
  static const EngineConfig engine;
  static const SamplingParams sampling;
  static const BeamParams beams;
  return *ValueOf(setting, {.engine = &engine, .sampling = &sampling, .beams = &beams});
}

void SetValue(const Setting& setting, const SettingValue& value, SettingsTarget to) {
  std::visit(Overloaded{[&](const Choice& choice) {
                          const auto& name = std::get<std::string>(value);
                          RequireOneOf(setting.name, name, choice.names);
                          const auto at = std::find(choice.names.begin(), choice.names.end(), name);
                          CAROUSEL_CHECK(
                              choice.set(static_cast<std::size_t>(at - choice.names.begin()), to));
                        },
                        [&](const auto& member) {
                          auto* const target = ValueIn(member, to);
                          CAROUSEL_CHECK(target != nullptr);
                          *target = std::get<std::remove_pointer_t<decltype(target)>>(value);
                        }},
             setting.place);
}

SettingValue ReadValue(const Setting& setting, std::string_view text) {
  return std::visit(
      Overloaded{
          [&](const Choice& choice) -> SettingValue {
            RequireOneOf(setting.name, text, choice.names);
            return std::string(text);
          },
          [&](const Member<std::int64_t>&) -> SettingValue {
            if (setting.in_bytes) {
              if (!setting.zero_is_unset && text == "0") return std::int64_t{0};
              return ReadBytes(setting.name, text);
            }
            const std::int64_t value = ReadWhole(setting.name, text);
            if (setting.zero_is_unset && value < 1)
              Refuse(setting.name, fmt::format("{} is too small; the least is 1", value));
            return value;
          },
          [&](const Member<std::uint64_t>&) -> SettingValue {
            return ReadUnsigned(setting.name, text);
          },
          [&](const Member<double>&) -> SettingValue { return ReadReal(setting.name, text); },
          [&](const Member<std::string>&) -> SettingValue {
            return std::string(text == setting.empty_word ? "" : text);
          },
          [&](const Member<std::vector<std::int64_t>>&) -> SettingValue {
            std::vector<std::int64_t> sizes;
            while (!text.empty()) {
              const std::size_t end = std::min(text.find(','), text.size());
              sizes.push_back(ReadWhole(setting.name, text.substr(0, end)));
              text.remove_prefix(std::min(end + 1, text.size()));
            }
            return sizes;
          }},
      setting.place);
}

std::optional<std::string> TextOf(const Setting& setting, const SettingValue& value) {
  return std::visit(
      Overloaded{
          [&](const std::string& text) -> std::optional<std::string> {
            return text.empty() ? std::string(setting.empty_word) : text;
          },
          [&](const std::vector<std::int64_t>& sizes) -> std::optional<std::string> {
            return fmt::format("{}", fmt::join(sizes, ","));
          },
          [&](std::int64_t number) -> std::optional<std::string> {
            if (setting.zero_is_unset && number == 0) return std::nullopt;
            return fmt::format("{}", number);
          },
          [](auto number) -> std::optional<std::string> { return fmt::format("{}", number); }},
      value);
}

void CheckRanges(SettingGroup group, SettingsView settings) {
  for (const Setting& setting : SettingTable()) {
    if (setting.group != group || setting.depends) continue;
    const std::optional<SettingValue> value = ValueOf(setting, settings);
    if (!value) continue;
    if (const auto* whole = std::get_if<WholeRange>(&setting.range))
      CheckWhole(setting, *whole, std::get<std::int64_t>(*value));
    if (const auto* real = std::get_if<RealRange>(&setting.range))
      CheckReal(setting, *real, std::get<double>(*value));
  }
}

std::int64_t ReadWhole(std::string_view field, std::string_view text) {
  const auto number = ParseNumber<std::int64_t>(text);
  if (!number) Refuse(field, fmt::format("\"{}\" is not a whole number", text));
  return *number;
}

std::uint64_t ReadUnsigned(std::string_view field, std::string_view text) {
  const auto number = ParseNumber<std::uint64_t>(text);
  if (!number) Refuse(field, fmt::format("\"{}\" is not a whole number from 0 to 2^64 - 1", text));
  return *number;
}

double ReadReal(std::string_view field, std::string_view text) {
  const auto number = ParseNumber<double>(text);
  if (!number || !std::isfinite(*number))
    Refuse(field, fmt::format("\"{}\" is not a number", text));
  return *number;
}

std::int64_t ReadBytes(std::string_view field, std::string_view text) {
  constexpr std::string_view kUnits = "KMGT";
  std::string_view digits = text;
  int shift = 0;
  if (digits.ends_with("iB"))
    digits.remove_suffix(2);
  else if (digits.ends_with('B'))
    digits.remove_suffix(1);
  if (!digits.empty()) {
    const auto unit = static_cast<char>(std::toupper(static_cast<unsigned char>(digits.back())));
    if (const std::size_t found = kUnits.find(unit); found != std::string_view::npos) {
      shift = 10 * (static_cast<int>(found) + 1);
      digits.remove_suffix(1);
    }
  }
  const auto number = ParseNumber<std::int64_t>(digits);
  if (!number || *number < 1)
    Refuse(field, fmt::format("\"{}\" is not a size; write bytes, 64M or 1G", text));
  if (*number > (INT64_MAX >> shift)) Refuse(field, fmt::format("{} is too large", text));
  return *number << shift;
}

void RequireOneOf(std::string_view field, std::string_view text,
                  const std::vector<std::string_view>& names) {
  if (std::find(names.begin(), names.end(), text) == names.end())
    Refuse(field, fmt::format("\"{}\" is not one of {}", text, fmt::join(names, ", ")));
}

}  // namespace carousel
