// SPDX-License-Identifier: Apache-2.0
#include "cli/progress.h"

#include <algorithm>
#include <utility>

namespace carousel {

bool Progress::IsDue() const {
  constexpr auto kInterval = std::chrono::milliseconds(100);
  return output_->is_terminal() && Clock::now() - last_shown_ >= kInterval;
}

void Progress::Show(std::string text) {
  if (!IsDue()) return;
  last_shown_ = Clock::now();
  // A line that fills the last column may wrap, and could then not be rewritten.
  const auto columns = static_cast<std::size_t>(std::max(output_->columns() - 1, 1));
  text.resize(std::min(text.size(), columns));
  const std::size_t text_columns = text.size();
  if (text_columns < shown_columns_) text.append(shown_columns_ - text_columns, ' ');
  shown_columns_ = text_columns;
  output_->TryWrite("\r" + text + "\r");
}

void Progress::Hide() {
  const std::size_t columns = std::exchange(shown_columns_, 0);
  if (columns > 0) output_->TryWrite("\r" + std::string(columns, ' ') + "\r");
}

}  // namespace carousel
