// SPDX-License-Identifier: Apache-2.0
// One command's flags: each can be given on the command line or as an environment variable.
#pragma once

#include <cstdint>
#include <functional>
#include <map>
#include <optional>
#include <string>
#include <string_view>
#include <vector>

#include "config/setting.h"

namespace CLI {
class App;
class Option;
}  // namespace CLI

namespace carousel {

// Looks a variable up; nullptr where it is not set. An empty one counts as not set.
using Environment = std::function<const char*(const std::string& name)>;

// How the program's messages call each setting: "max_cache_size" -> "--max-cache-size".
using FieldLabels = std::map<std::string, std::string>;

struct IntegerRange {
  std::int64_t least = 0;
  std::int64_t most = INT64_MAX;
};

// Throws UsageError or carousel::Error, without the flag's name.
std::int64_t ReadInteger(const std::string& text, IntegerRange range);

// CLI11 splits the command line and prints the help. Values are read here, so that every message
// has one shape: the flag, the value, the limit, the mend. Given twice, the last one counts; a
// variable (--max-cache-size is CAROUSEL_MAX_CACHE_SIZE) counts only where the flag is not given.
class FlagSet {
 public:
  // What stands behind a flag. `field` is the setting's name in carousel::Error where it is not the
  // flag's own with underscores.
  struct Spec {
    std::string flag;        // "--chunk", or with aliases "--repetition-penalty,--repeat-penalty"
    std::string value_name;  // "N"
    std::string description;
    std::string field = "";
    bool rare = false;  // --help-all has it, --help does not
  };

  // `command` must outlive this.
  explicit FlagSet(CLI::App* command) : command_(command) {}

  // The heading in the help for the flags added from now on, and in the short help where that is
  // another.
  void Heading(std::string heading, std::string short_heading = "") {
    heading_ = std::move(heading);
    short_heading_ = short_heading.empty() ? heading_ : std::move(short_heading);
  }

  void Text(Spec spec, std::string* target);
  void OptionalText(Spec spec, std::optional<std::string>* target);
  void Texts(Spec spec, std::vector<std::string>* target);  // may be given more than once
  void Integer(Spec spec, IntegerRange range, std::int64_t* target);
  void Switch(Spec spec, bool* target);
  // A setting of the library, under its own names. `target` must outlive this, and `given` is
  // called when it has been set.
  void Add(const Setting& setting, SettingsTarget target,
           std::function<void(const Setting&)> given);
  // Values with commas between them, at least one. `read` throws UsageError or carousel::Error,
  // without the flag's name.
  void List(Spec spec, std::function<void(const std::vector<std::string>&)> read);
  void Integers(Spec spec, IntegerRange range, std::vector<std::int64_t>* target);
  // One of `names`; `parse` gives what a name stands for.
  template <typename Enum, typename Parse>
  void OneOf(Spec spec, const std::vector<std::string_view>& names, Parse parse, Enum* target) {
    CheckedText(std::move(spec), names,
                [parse, target](const std::string& value) { *target = *parse(value); });
  }

  // Reads what was given into the targets. Throws UsageError for the first value that cannot be
  // read.
  void Apply(const Environment& environment);

  // After Apply. Flags are named "--chunk".
  bool Given(std::string_view flag) const;
  bool GivenOnCommandLine(std::string_view flag) const;
  // The flags under a heading that were given on the command line.
  std::vector<std::string> GivenUnder(std::string_view heading) const;
  // "--chunk", with the variable's name when the value comes from there.
  std::string Label(std::string_view flag) const;
  FieldLabels Labels() const;
  // Leaves the rare flags out of the help. False: there are none.
  bool ShortenHelp();

 private:
  enum class Source { kDefault, kEnvironment, kCommandLine };
  // Reads one value; throws UsageError or carousel::Error, without the flag's name.
  using Setter = std::function<void(const std::string&)>;
  struct Flag {
    std::string name;      // "--chunk"
    std::string variable;  // "CAROUSEL_CHUNK"
    std::string field;
    std::string heading;
    std::string short_heading;
    bool rare = false;
    CLI::Option* option = nullptr;
    Setter set;
    Source source = Source::kDefault;
  };

  void AddOption(const Spec& spec, Setter set);
  void Register(const Spec& spec, CLI::Option* option, Setter set);
  void CheckedText(Spec spec, const std::vector<std::string_view>& names, Setter set);
  const Flag& Find(std::string_view flag) const;

  CLI::App* command_;
  std::string heading_ = "Flags";
  std::string short_heading_ = heading_;
  std::vector<Flag> flags_;
};

}  // namespace carousel
