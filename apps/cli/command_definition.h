// SPDX-License-Identifier: Apache-2.0
// The program's commands: what flags each has and what they add up to.
#pragma once

#include <memory>
#include <string>
#include <vector>

#include "cli/command_line.h"
#include "cli/flag_set.h"

namespace carousel {

class CommandDefinition {
 public:
  virtual ~CommandDefinition() = default;
  // What the flags say, once CLI11 has split the command line. Throws UsageError.
  virtual Invocation Settle(const Environment& environment) = 0;
  CLI::App* app() const { return app_; }
  // From now on the help is one screen: without the rare flags, and of the text below them the
  // examples alone.
  void ShortenHelp();

 protected:
  explicit CommandDefinition(CLI::App* app) : app_(app), flags_(app) {}
  FlagSet& flags() { return flags_; }

 private:
  CLI::App* app_;
  FlagSet flags_;
};

// Adds models, info, stream, generate, evaluate, batch, chat and the five of bench to `program`,
// which must outlive them.
std::vector<std::unique_ptr<CommandDefinition>> DefineCommands(CLI::App* program);

// What several definitions share. Each throws UsageError that names the flag.
void RefuseEmpty(const FlagSet& flags, const char* flag, const std::string& value);
// A tokenizer's files are part of the model's folder.
FieldLabels ModelLabels(const FlagSet& flags);
// What the engine is to be told by `cache`.
EngineConfig CheckedConfig(const ConfigDraft& cache, const FieldLabels& labels);

// A command's place in `parent`, which outlives it.
CLI::App* AddCommand(CLI::App* parent, const char* name, const char* description,
                     const char* footer);

template <typename Command>
std::unique_ptr<CommandDefinition> Define(CLI::App* parent, const char* name,
                                          const char* description, const char* footer) {
  return std::make_unique<Command>(AddCommand(parent, name, description, footer));
}

}  // namespace carousel
