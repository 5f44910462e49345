// SPDX-License-Identifier: Apache-2.0
#include "cli/flag_set.h"

#include <fmt/format.h>

#include <CLI/CLI.hpp>
#include <algorithm>
#include <charconv>
#include <cmath>
#include <utility>

#include "base/check.h"
#include "cli/usage_error.h"

namespace carousel {
namespace {

// "--max-cache-size" -> "CAROUSEL_MAX_CACHE_SIZE".
std::string VariableName(std::string_view flag) {
  std::string name = "CAROUSEL";
  for (const char letter : flag.substr(1)) {
    name +=
        letter == '-' ? '_' : static_cast<char>(std::toupper(static_cast<unsigned char>(letter)));
  }
  return name;
}

// "--max-cache-size" -> "max_cache_size".
std::string FieldName(std::string_view flag) {
  std::string name(flag.substr(2));
  std::replace(name.begin(), name.end(), '-', '_');
  return name;
}

template <typename Number>
std::optional<Number> ParseNumber(std::string_view text) {
  Number number{};
  const auto [end, error] = std::from_chars(text.data(), text.data() + text.size(), number);
  if (error != std::errc() || end != text.data() + text.size()) return std::nullopt;
  return number;
}

double ReadReal(const std::string& text) {
  const auto number = ParseNumber<double>(text);
  if (!number || !std::isfinite(*number))
    throw UsageError(fmt::format("\"{}\" is not a number", text));
  return *number;
}

std::int64_t ReadBytes(const std::string& text) {
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
    throw UsageError(fmt::format("\"{}\" is not a size; write bytes, 64M or 1G", text));
  if (*number > (INT64_MAX >> shift)) throw UsageError(fmt::format("{} is too large", text));
  return *number << shift;
}

bool ReadSwitch(std::string text) {
  for (char& letter : text)
    letter = static_cast<char>(std::tolower(static_cast<unsigned char>(letter)));
  if (text == "true" || text == "1" || text == "yes" || text == "on") return true;
  if (text == "false" || text == "0" || text == "no" || text == "off") return false;
  throw UsageError(fmt::format("\"{}\" is neither true nor false", text));
}

}  // namespace

std::int64_t ReadInteger(const std::string& text, IntegerRange range) {
  const auto number = ParseNumber<std::int64_t>(text);
  if (!number) throw UsageError(fmt::format("\"{}\" is not a whole number", text));
  if (*number < range.least)
    throw UsageError(fmt::format("{} is too small; the least is {}", *number, range.least));
  if (*number > range.most)
    throw UsageError(fmt::format("{} is too large; the most is {}", *number, range.most));
  return *number;
}

void RequireOneOf(const std::string& text, const std::vector<std::string>& names) {
  if (std::find(names.begin(), names.end(), text) == names.end())
    throw UsageError(fmt::format("\"{}\" is not one of {}", text, fmt::join(names, ", ")));
}

void FlagSet::Text(Spec spec, std::string* target) {
  Add(std::move(spec), [target](const std::string& value) { *target = value; });
}

void FlagSet::OptionalText(Spec spec, std::optional<std::string>* target) {
  Add(std::move(spec), [target](const std::string& value) { *target = value; });
}

void FlagSet::Texts(Spec spec, std::vector<std::string>* target) {
  CLI::Option* option = command_->add_option(spec.flag)
                            ->description(spec.description)
                            ->multi_option_policy(CLI::MultiOptionPolicy::TakeAll);
  Register(spec, option, [target](const std::string& value) { target->push_back(value); });
}

void FlagSet::Integer(Spec spec, IntegerRange range, std::int64_t* target) {
  Add(std::move(spec),
      [range, target](const std::string& value) { *target = ReadInteger(value, range); });
}

void FlagSet::OptionalInteger(Spec spec, IntegerRange range, std::optional<std::int64_t>* target) {
  Add(std::move(spec),
      [range, target](const std::string& value) { *target = ReadInteger(value, range); });
}

void FlagSet::YieldingInteger(Spec spec, IntegerRange range, std::int64_t* target, bool* yields) {
  Add(std::move(spec), [range, target, yields](const std::string& value) {
    *target = ReadInteger(value, range);
    *yields = false;
  });
}

void FlagSet::Unsigned(Spec spec, std::uint64_t* target) {
  Add(std::move(spec), [target](const std::string& value) {
    const auto number = ParseNumber<std::uint64_t>(value);
    if (!number)
      throw UsageError(fmt::format("\"{}\" is not a whole number from 0 to 2^64 - 1", value));
    *target = *number;
  });
}

void FlagSet::Real(Spec spec, double* target) {
  Add(std::move(spec), [target](const std::string& value) { *target = ReadReal(value); });
}

void FlagSet::Bytes(Spec spec, std::int64_t* target) {
  Add(std::move(spec), [target](const std::string& value) { *target = ReadBytes(value); });
}

void FlagSet::Switch(Spec spec, bool* target) {
  CLI::Option* option = command_->add_flag(spec.flag)->description(spec.description);
  Register(spec, option, [target](const std::string& value) { *target = ReadSwitch(value); });
}

void FlagSet::CheckedText(Spec spec, const std::vector<std::string>& names, Setter set) {
  Add(std::move(spec), [names, set = std::move(set)](const std::string& value) {
    RequireOneOf(value, names);
    set(value);
  });
}

void FlagSet::List(Spec spec, std::function<void(const std::vector<std::string>&)> read) {
  Add(std::move(spec), [read = std::move(read)](const std::string& value) {
    std::vector<std::string> words;
    for (std::size_t begin = 0, end = 0; end != std::string::npos; begin = end + 1) {
      end = value.find(',', begin);
      words.push_back(value.substr(begin, end - begin));
    }
    read(words);
  });
}

void FlagSet::Integers(Spec spec, IntegerRange range, std::vector<std::int64_t>* target) {
  List(std::move(spec), [range, target](const std::vector<std::string>& words) {
    target->clear();
    for (const std::string& word : words) target->push_back(ReadInteger(word, range));
  });
}

void FlagSet::Add(Spec spec, Setter set) {
  CLI::Option* option = command_->add_option(spec.flag)
                            ->description(spec.description)
                            ->multi_option_policy(CLI::MultiOptionPolicy::TakeLast);
  Register(spec, option, std::move(set));
}

void FlagSet::Register(const Spec& spec, CLI::Option* option, Setter set) {
  option->group(heading_);
  if (!spec.value_name.empty()) option->type_name(spec.value_name);
  const std::string name = spec.flag.substr(0, spec.flag.find(','));
  flags_.push_back({.name = name,
                    .variable = VariableName(name),
                    .field = spec.field.empty() ? FieldName(name) : spec.field,
                    .heading = heading_,
                    .option = option,
                    .set = std::move(set)});
}

void FlagSet::Apply(const Environment& environment) {
  for (Flag& flag : flags_) {
    std::vector<std::string> values = flag.option->reduced_results();
    const char* variable = environment(flag.variable);
    if (flag.option->count() > 0) {
      flag.source = Source::kCommandLine;
    } else if (variable != nullptr && *variable != '\0') {
      flag.source = Source::kEnvironment;
      values = {variable};
    } else {
      continue;
    }
    try {
      for (const std::string& value : values) flag.set(value);
    } catch (const UsageError& error) {
      throw UsageError(fmt::format("{}: {}", Label(flag.name), error.what()));
    }
  }
}

const FlagSet::Flag& FlagSet::Find(std::string_view flag) const {
  const auto found = std::find_if(flags_.begin(), flags_.end(),
                                  [flag](const Flag& other) { return other.name == flag; });
  CAROUSEL_CHECK(found != flags_.end());
  return *found;
}

bool FlagSet::Given(std::string_view flag) const { return Find(flag).source != Source::kDefault; }

bool FlagSet::GivenOnCommandLine(std::string_view flag) const {
  return Find(flag).source == Source::kCommandLine;
}

std::vector<std::string> FlagSet::GivenUnder(std::string_view heading) const {
  std::vector<std::string> given;
  for (const Flag& flag : flags_) {
    if (flag.heading == heading && flag.source == Source::kCommandLine) given.push_back(flag.name);
  }
  return given;
}

std::string FlagSet::Label(std::string_view flag) const {
  const Flag& found = Find(flag);
  if (found.source != Source::kEnvironment) return found.name;
  return fmt::format("{} ({})", found.name, found.variable);
}

FieldLabels FlagSet::Labels() const {
  FieldLabels labels;
  for (const Flag& flag : flags_) labels[flag.field] = Label(flag.name);
  return labels;
}

}  // namespace carousel
