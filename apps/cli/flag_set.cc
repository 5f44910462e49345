// SPDX-License-Identifier: Apache-2.0
#include "cli/flag_set.h"

#include <fmt/format.h>

#include <CLI/CLI.hpp>
#include <algorithm>
#include <utility>

#include "base/check.h"
#include "carousel/error.h"
#include "cli/usage_error.h"
#include "config/setting_value.h"

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

bool ReadSwitch(std::string text) {
  for (char& letter : text)
    letter = static_cast<char>(std::tolower(static_cast<unsigned char>(letter)));
  if (text == "true" || text == "1" || text == "yes" || text == "on") return true;
  if (text == "false" || text == "0" || text == "no" || text == "off") return false;
  throw UsageError(fmt::format("\"{}\" is neither true nor false", text));
}

}  // namespace

std::int64_t ReadInteger(const std::string& text, IntegerRange range) {
  const std::int64_t number = ReadWhole("", text);
  if (number < range.least)
    throw UsageError(fmt::format("{} is too small; the least is {}", number, range.least));
  if (number > range.most)
    throw UsageError(fmt::format("{} is too large; the most is {}", number, range.most));
  return number;
}

void FlagSet::Text(Spec spec, std::string* target) {
  AddOption(spec, [target](const std::string& value) { *target = value; });
}

void FlagSet::OptionalText(Spec spec, std::optional<std::string>* target) {
  AddOption(spec, [target](const std::string& value) { *target = value; });
}

void FlagSet::Texts(Spec spec, std::vector<std::string>* target) {
  CLI::Option* option = command_->add_option(spec.flag)
                            ->description(spec.description)
                            ->multi_option_policy(CLI::MultiOptionPolicy::TakeAll);
  Register(spec, option, [target](const std::string& value) { target->push_back(value); });
}

void FlagSet::Integer(Spec spec, IntegerRange range, std::int64_t* target) {
  AddOption(spec,
            [range, target](const std::string& value) { *target = ReadInteger(value, range); });
}

void FlagSet::Switch(Spec spec, bool* target) {
  CLI::Option* option = command_->add_flag(spec.flag)->description(spec.description);
  Register(spec, option, [target](const std::string& value) { *target = ReadSwitch(value); });
}

void FlagSet::CheckedText(Spec spec, const std::vector<std::string_view>& names, Setter set) {
  AddOption(spec, [names, set = std::move(set)](const std::string& value) {
    RequireOneOf("", value, names);
    set(value);
  });
}

void FlagSet::List(Spec spec, std::function<void(const std::vector<std::string>&)> read) {
  AddOption(spec, [read = std::move(read)](const std::string& value) {
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

void FlagSet::AddOption(const Spec& spec, Setter set) {
  CLI::Option* option = command_->add_option(spec.flag)
                            ->description(spec.description)
                            ->multi_option_policy(CLI::MultiOptionPolicy::TakeLast);
  Register(spec, option, std::move(set));
}

void FlagSet::Add(const Setting& setting, SettingsTarget target,
                  std::function<void(const Setting&)> given) {
  const std::string value =
      TextOf(setting, *ValueOf(setting, target.view())).value_or("");  // where nobody gives it
  std::string description =
      fmt::format("{} ({})", setting.help, fmt::format(fmt::runtime(setting.default_text), value));
  if (setting.more_help != nullptr) description += setting.more_help();
  AddOption({.flag = std::string(setting.flag),
             .value_name = std::string(setting.value_name),
             .description = std::move(description),
             .field = std::string(setting.name),
             .rare = !setting.common},
            [&setting, target, given = std::move(given)](const std::string& text) {
              SetValue(setting, ReadValue(setting, text), target);
              if (given) given(setting);
            });
}

void FlagSet::Register(const Spec& spec, CLI::Option* option, Setter set) {
  option->group(heading_);
  if (!spec.value_name.empty()) option->type_name(spec.value_name);
  const std::string name = spec.flag.substr(0, spec.flag.find(','));
  flags_.push_back({.name = name,
                    .variable = VariableName(name),
                    .field = spec.field.empty() ? FieldName(name) : spec.field,
                    .heading = heading_,
                    .short_heading = short_heading_,
                    .rare = spec.rare,
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
    } catch (const Error& error) {
      throw UsageError(fmt::format("{}: {}", Label(flag.name), error.problem()));
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

bool FlagSet::ShortenHelp() {
  for (const Flag& flag : flags_) flag.option->group(flag.rare ? "" : flag.short_heading);
  return std::any_of(flags_.begin(), flags_.end(), [](const Flag& flag) { return flag.rare; });
}

FieldLabels FlagSet::Labels() const {
  FieldLabels labels;
  for (const Flag& flag : flags_) labels[flag.field] = Label(flag.name);
  return labels;
}

}  // namespace carousel
