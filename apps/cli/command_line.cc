// SPDX-License-Identifier: Apache-2.0
#include "cli/command_line.h"

#include <fmt/format.h>

#include <CLI/CLI.hpp>
#include <algorithm>
#include <memory>
#include <optional>
#include <utility>

#include "base/nearest_name.h"
#include "cli/command_definition.h"
#include "cli/error_text.h"
#include "cli/usage_error.h"

namespace carousel {
namespace {

constexpr const char* kSummary =
    "Runs a language model over an endless stream in a key/value cache of fixed size.";

constexpr const char* kMainFooter = R"(
Examples:
  carousel models
  carousel info
  carousel stream --text book.txt --start-size 32 --recent-size 256 --max-cache-size 512
  carousel generate --prompt "Name three rivers." --max-new-tokens 64
  carousel chat
  carousel bench attention --contexts 512,4096

Every flag is also an environment variable: --max-cache-size is CAROUSEL_MAX_CACHE_SIZE.
Exit status: 0 done, 1 failed, 2 bad usage, 130 stopped by Ctrl-C.
"carousel COMMAND --help" lists what most people use of a command, --help-all everything.)";

// The program as CLI11 sees it.
struct Program {
  CLI::App app{kSummary, "carousel"};
  std::vector<std::unique_ptr<CommandDefinition>> commands;

  Program() {
    app.set_help_flag("-h,--help", "Print what most people use and exit");
    app.set_help_all_flag("--help-all", "Print everything and exit");
    app.set_version_flag("--version", "carousel " CAROUSEL_VERSION, "Print the version and exit");
    app.footer(kMainFooter);
    app.require_subcommand(0, 1);
    app.allow_extras();
    commands = DefineCommands(&app);
  }

  // The command that was named; nullptr: none.
  CommandDefinition* chosen() const {
    const auto found = std::find_if(commands.begin(), commands.end(),
                                    [](const auto& command) { return command->app()->parsed(); });
    return found == commands.end() ? nullptr : found->get();
  }
};

// "bench attention": without the program's name.
std::string FullName(const CLI::App& command) {
  std::string name = command.get_name();
  for (const CLI::App* above = command.get_parent(); above->get_parent() != nullptr;
       above = above->get_parent())
    name = above->get_name() + " " + name;
  return name;
}

std::string Shown(const std::string& argument) { return argument.empty() ? "\"\"" : argument; }

std::string NearestFlag(const CLI::App& command, std::string_view flag) {
  std::vector<std::string> flags;
  for (const CLI::Option* option : command.get_options()) {
    for (const std::string& name : option->get_lnames()) flags.push_back("--" + name);
  }
  return NearestName(flag, flags);
}

[[noreturn]] void FailUnexpected(const CLI::App& command, std::string argument) {
  const std::string name = FullName(command);
  if (!argument.starts_with("-"))
    throw UsageError(fmt::format("{}: unexpected; see carousel {} --help", Shown(argument), name));
  argument = argument.substr(0, argument.find('='));
  const std::string nearest = NearestFlag(command, argument);
  throw UsageError(nearest.empty()
                       ? fmt::format("{}: unknown flag; see carousel {} --help", argument, name)
                       : fmt::format("{}: unknown flag; did you mean {}?", argument, nearest));
}

std::vector<std::string> CommandsOf(const CLI::App& app) {
  std::vector<std::string> names;
  for (const CLI::App* part : app.get_subcommands([](const CLI::App*) { return true; }))
    names.push_back(part->get_name());
  return names;
}

// The program's commands: "models, info or chat".
std::string CommandChoice(const CLI::App& program) {
  const std::vector<std::string> names = CommandsOf(program);
  const auto last = names.end() - 1;
  return fmt::format("{} or {}", fmt::join(names.begin(), last, ", "), *last);
}

// A command that only has commands of its own, none of which was named.
[[noreturn]] void FailWithoutPart(const CLI::App& command) {
  const std::string name = FullName(command);
  const std::string choice = fmt::format("{}", fmt::join(CommandsOf(command), " or "));
  const std::vector<std::string> unknown = command.remaining();
  if (unknown.empty()) throw UsageError(fmt::format("{}: of what? Use {} {}", name, name, choice));
  throw UsageError(
      fmt::format("{}: unknown after {}; use {}", Shown(unknown.front()), name, choice));
}

// CLI11 takes "--flag=" for a flag whose value is the next argument; an empty value is meant.
std::vector<std::string> SplitEmptyValues(const std::vector<std::string>& arguments) {
  std::vector<std::string> split;
  for (const std::string& argument : arguments) {
    const bool empty_value = argument.starts_with("--") && argument.size() > 3 &&
                             argument.find('=') == argument.size() - 1;
    split.push_back(empty_value ? argument.substr(0, argument.size() - 1) : argument);
    if (empty_value) split.emplace_back();
  }
  return split;
}

// CLI11's text with one empty line where it leaves two, and a line's end at its end.
std::string HelpText(const CLI::App& app) {
  std::string text = app.help() + "\n";
  for (std::size_t at = 0; (at = text.find("\n\n\n", at)) != std::string::npos;) text.erase(at, 1);
  return text;
}

// Lines of at most 100 characters. What is behind a flag goes on below itself.
std::string Wrapped(const std::string& text) {
  constexpr std::size_t kWidth = 100;
  constexpr std::size_t kColumn = 30;  // where CLI11 begins what a flag is
  std::string wrapped;
  for (std::size_t begin = 0; begin < text.size();) {
    const std::size_t end = text.find('\n', begin);
    std::string line = text.substr(begin, end - begin);
    begin = end + 1;
    while (line.size() > kWidth) {
      const std::size_t space = line.rfind(' ', kWidth);
      if (space == std::string::npos || space <= kColumn) break;
      wrapped += line.substr(0, space) + "\n";
      line = std::string(kColumn, ' ') + line.substr(space + 1);
    }
    wrapped += line + "\n";
  }
  return wrapped;
}

// Runs CLI11. nullopt: a command was chosen; else what --help or --version print.
std::optional<std::string> Split(const std::vector<std::string>& arguments, Program* program) {
  std::vector<std::string> reversed = SplitEmptyValues(arguments);
  std::reverse(reversed.begin(), reversed.end());  // as CLI11 wants them
  try {
    program->app.parse(reversed);
  } catch (const CLI::CallForHelp&) {
    for (const auto& command : program->commands) command->ShortenHelp();
    return Wrapped(HelpText(program->app));
  } catch (const CLI::CallForAllHelp&) {
    return HelpText(program->app);
  } catch (const CLI::CallForVersion& version) {
    return std::string(version.what()) + "\n";
  } catch (const CLI::ArgumentMismatch& error) {
    const std::string message = error.what();
    throw UsageError(message.substr(0, message.find(':')) + ": a value is missing");
  } catch (const CLI::ParseError& error) {
    throw UsageError(OneLine(error.what()));
  }
  const CommandDefinition* chosen = program->chosen();
  if (chosen == nullptr && !program->app.get_subcommands().empty())
    FailWithoutPart(*program->app.get_subcommands().front());
  const std::vector<std::string> unknown = program->app.remaining();
  if (!unknown.empty()) {
    if (chosen != nullptr || unknown.front().starts_with("-"))
      throw UsageError(fmt::format("{}: unknown flag; see carousel --help", unknown.front()));
    throw UsageError(fmt::format("{}: unknown command; use {}", Shown(unknown.front()),
                                 CommandChoice(program->app)));
  }
  if (chosen == nullptr)
    throw UsageError(
        fmt::format("no command; use {}, or see carousel --help", CommandChoice(program->app)));
  const std::vector<std::string> unexpected = chosen->app()->remaining();
  if (!unexpected.empty()) FailUnexpected(*chosen->app(), unexpected.front());
  return std::nullopt;
}

}  // namespace

Invocation ParseCommandLine(const std::vector<std::string>& arguments,
                            const Environment& environment) {
  Program program;
  if (std::optional<std::string> text = Split(arguments, &program))
    return {.command = PrintText{*std::move(text)}, .labels = {}, .notes = {}};
  return program.chosen()->Settle(environment);
}

}  // namespace carousel
