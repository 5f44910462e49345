// SPDX-License-Identifier: Apache-2.0
// From arguments to what is to be run. Reads no file and prints nothing.
#pragma once

#include <string>
#include <variant>
#include <vector>

#include "cli/bench_flags.h"
#include "cli/flags.h"

namespace carousel {

// --help and --version: text for standard output, exit status 0.
struct PrintText {
  std::string text;
};

struct Invocation {
  std::variant<PrintText, ModelsFlags, InfoFlags, StreamFlags, GenerateFlags, EvaluateFlags,
               BatchFlags, ChatFlags, BenchAttentionFlags, BenchModelFlags, BenchRowsFlags,
               BenchServeFlags, BenchSamplerFlags>
      command;
  // How errors that come up later call the settings.
  FieldLabels labels;
  // One line each, for standard error: what was given and has no effect.
  std::vector<std::string> notes;
};

// `arguments` are without the program's name. Throws UsageError, one line that names the flag, for
// anything that can be told without a model.
Invocation ParseCommandLine(const std::vector<std::string>& arguments,
                            const Environment& environment);

}  // namespace carousel
