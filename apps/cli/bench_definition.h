// SPDX-License-Identifier: Apache-2.0
#pragma once

#include <memory>
#include <vector>

#include "cli/command_definition.h"

namespace carousel {

// Adds bench attention, bench model and bench sampler to `program`, which must outlive them.
void DefineBench(CLI::App* program, std::vector<std::unique_ptr<CommandDefinition>>* commands);

}  // namespace carousel
