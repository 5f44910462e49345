// SPDX-License-Identifier: Apache-2.0
// One line on a terminal that is rewritten in place while something long runs.
#pragma once

#include <chrono>
#include <string>

#include "cli/console.h"

namespace carousel {

// Silent where `output` is not a terminal. Rewrites the line at most ten times a second.
class Progress {
 public:
  explicit Progress(TextOutput* output) : output_(output) {}
  ~Progress() { Hide(); }
  Progress(const Progress&) = delete;
  Progress& operator=(const Progress&) = delete;

  // Whether Show would show something now; lets the caller skip making the text.
  bool IsDue() const;
  // `text` is ASCII without control characters; what does not fit the terminal's width is cut off.
  void Show(std::string text);
  // Clears the line, so that other text can take its place.
  void Hide();

 private:
  using Clock = std::chrono::steady_clock;
  TextOutput* output_;
  Clock::time_point last_shown_;
  std::size_t shown_columns_ = 0;
};

}  // namespace carousel
