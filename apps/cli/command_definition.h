// SPDX-License-Identifier: Apache-2.0
// The program's commands: what flags each has and what they add up to.
#pragma once

#include <memory>
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

 protected:
  explicit CommandDefinition(CLI::App* app) : app_(app), flags_(app) {}
  FlagSet& flags() { return flags_; }

 private:
  CLI::App* app_;
  FlagSet flags_;
};

// Adds info, stream, generate and chat to `program`, which must outlive them.
std::vector<std::unique_ptr<CommandDefinition>> DefineCommands(CLI::App* program);

}  // namespace carousel
