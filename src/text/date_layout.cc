// SPDX-License-Identifier: Apache-2.0
#include "text/date_layout.h"

#include <fmt/chrono.h>
#include <fmt/format.h>

#include "base/check.h"

namespace carousel {

bool IsDateLayout(std::string_view layout) {
  for (std::size_t i = 0; i < layout.size(); ++i) {
    if (layout[i] != '%') continue;
    if (++i == layout.size() || kDateDirectives.find(layout[i]) == std::string_view::npos)
      return false;
  }
  return true;
}

std::string FormatDate(std::string_view layout, const std::tm& date) {
  CAROUSEL_CHECK(IsDateLayout(layout));
  std::string text;
  for (std::size_t i = 0; i < layout.size(); ++i) {
    if (layout[i] != '%')
      text += layout[i];
    else  // Each directive alone, so that braces between them are only text.
      text += fmt::format(fmt::runtime(fmt::format("{{:%{}}}", layout[++i])), date);
  }
  return text;
}

std::tm LocalDate() {
  const std::time_t now = std::time(nullptr);
  std::tm date{};
  localtime_r(&now, &date);
  return date;
}

}  // namespace carousel
