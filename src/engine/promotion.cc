// SPDX-License-Identifier: Apache-2.0
#include "engine/promotion.h"

#include <algorithm>
#include <numeric>

namespace carousel {
namespace {

// Places in `blocks`, from the one that was given most on; of equal ones the newer first.
std::vector<std::size_t> FromMost(std::span<const GivenMass> blocks) {
  std::vector<std::size_t> order(blocks.size());
  std::iota(order.begin(), order.end(), 0);
  std::sort(order.begin(), order.end(), [&](std::size_t left, std::size_t right) {
    const GivenMass& a = blocks[left];
    const GivenMass& b = blocks[right];
    return a.mass != b.mass ? a.mass > b.mass : a.logical > b.logical;
  });
  return order;
}

}  // namespace

void AddMass(Position logical, double mass, std::vector<GivenMass>* list) {
  const auto place = std::lower_bound(
      list->begin(), list->end(), logical,
      [](const GivenMass& block, Position position) { return block.logical < position; });
  if (place != list->end() && place->logical == logical) {
    place->mass += mass;
  } else {
    list->insert(place, {.logical = logical, .mass = mass});
  }
}

std::vector<Exchange> EarnedPlaces(std::span<const GivenMass> resident,
                                   std::span<const GivenMass> recalled, double factor) {
  const std::vector<std::size_t> leaving = FromMost(resident);
  const std::vector<std::size_t> coming = FromMost(recalled);
  std::vector<Exchange> exchanges;
  for (std::size_t i = 0; i < std::min(leaving.size(), coming.size()); ++i) {
    const std::size_t weakest = leaving[leaving.size() - 1 - i];
    if (!(recalled[coming[i]].mass > factor * resident[weakest].mass)) break;
    exchanges.push_back({.resident = weakest, .recalled = coming[i]});
  }
  return exchanges;
}

}  // namespace carousel
