// SPDX-License-Identifier: Apache-2.0
// The name that was meant where another was written.
#pragma once

#include <string>
#include <string_view>
#include <vector>

namespace carousel {

// The first of the nearest names; empty where all are more than two single-letter edits away, which
// makes them other words.
std::string NearestName(std::string_view written, const std::vector<std::string>& names);

}  // namespace carousel
