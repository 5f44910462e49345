// SPDX-License-Identifier: Apache-2.0
// Errors of the library as the program's user reads them.
#pragma once

#include <string>
#include <string_view>

#include "carousel/error.h"
#include "cli/flag_set.h"

namespace carousel {

inline constexpr int kExitFailure = 1;
inline constexpr int kExitUsage = 2;

// One line without the program's name, settings called by their flags: "--max-cache-size: 500 is
// not ...". What stands in double quotes stays as it is.
std::string ErrorText(const Error& error, const FieldLabels& labels);

// kExitUsage when a flag is at fault, else kExitFailure.
int ExitStatus(const Error& error, const FieldLabels& labels);

// The text with line ends and other control characters as spaces.
std::string OneLine(std::string_view text);

}  // namespace carousel
