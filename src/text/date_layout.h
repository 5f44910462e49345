// SPDX-License-Identifier: Apache-2.0
// Dates as chat templates write them: layouts of strftime, in English, whatever the locale.
#pragma once

#include <ctime>
#include <string>
#include <string_view>

namespace carousel {

// What may follow a % in a layout.
inline constexpr std::string_view kDateDirectives = "aAbBdHIjmMpSyY%";

// Whether every % of `layout` begins a directive that FormatDate knows.
bool IsDateLayout(std::string_view layout);

// `layout` with its directives filled in, as strftime does in the C locale. CHECKs IsDateLayout.
std::string FormatDate(std::string_view layout, const std::tm& date);

// Now, in the local time zone.
std::tm LocalDate();

}  // namespace carousel
