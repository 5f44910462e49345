// SPDX-License-Identifier: Apache-2.0
#include "base/nearest_name.h"

#include <algorithm>
#include <cstddef>
#include <utility>

namespace carousel {
namespace {

// The number of single-letter edits between two words (Levenshtein 1966).
std::size_t EditDistance(std::string_view left, std::string_view right) {
  std::vector<std::size_t> row(right.size() + 1);
  for (std::size_t j = 0; j <= right.size(); ++j) row[j] = j;
  for (std::size_t i = 1; i <= left.size(); ++i) {
    std::size_t diagonal = std::exchange(row[0], i);
    for (std::size_t j = 1; j <= right.size(); ++j) {
      const std::size_t replaced = diagonal + (left[i - 1] == right[j - 1] ? 0 : 1);
      diagonal = std::exchange(row[j], std::min({row[j] + 1, row[j - 1] + 1, replaced}));
    }
  }
  return row[right.size()];
}

}  // namespace

std::string NearestName(std::string_view written, const std::vector<std::string>& names) {
  std::string nearest;
  std::size_t best = 3;
  for (const std::string& name : names) {
    if (std::max(name.size(), written.size()) - std::min(name.size(), written.size()) >= best)
      continue;
    const std::size_t distance = EditDistance(written, name);
    if (distance >= best) continue;
    best = distance;
    nearest = name;
  }
  return nearest;
}

}  // namespace carousel
