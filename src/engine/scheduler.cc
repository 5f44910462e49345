// SPDX-License-Identifier: Apache-2.0
#include "engine/scheduler.h"

#include <algorithm>

#include "base/check.h"

namespace carousel {

std::vector<std::size_t> ChooseRunning(std::span<const Runnable> running, std::int64_t max_rows) {
  CAROUSEL_CHECK(!running.empty());
  std::vector<std::size_t> chosen;
  std::vector<std::size_t> prompts;
  std::int64_t rows = 0;
  for (std::size_t i = 0; i < running.size(); ++i) {
    if (running[i].is_prompt) {
      prompts.push_back(i);
    } else {
      chosen.push_back(i);
      rows += running[i].rows;
    }
  }
  std::stable_sort(prompts.begin(), prompts.end(), [&](std::size_t left, std::size_t right) {
    return running[left].last_step < running[right].last_step;
  });
  for (const std::size_t i : prompts) {
    // In their order: one that does not fit is not overtaken.
    if (rows + running[i].rows > max_rows) break;
    chosen.push_back(i);
    rows += running[i].rows;
  }
  CAROUSEL_CHECK(!chosen.empty());
  CAROUSEL_CHECK_LE(rows, max_rows);
  std::sort(chosen.begin(), chosen.end());
  return chosen;
}

std::vector<std::size_t> ChooseOne(std::span<const Runnable> running) {
  CAROUSEL_CHECK(!running.empty());
  const auto longest = std::min_element(
      running.begin(), running.end(),
      [](const Runnable& left, const Runnable& right) { return left.last_step < right.last_step; });
  return {static_cast<std::size_t>(longest - running.begin())};
}

}  // namespace carousel
