// SPDX-License-Identifier: Apache-2.0
// Who has earned a place in the cache: a recalled block that was given more attention than a block
// that is resident, since their cache group last evicted something, takes its place.
#pragma once

#include <cstdint>
#include <span>
#include <vector>

#include "carousel/types.h"

namespace carousel {

// The attention mass that a block was given, by logical position of its first token.
struct GivenMass {
  Position logical;
  double mass = 0.0;
};

// Adds to a list in stream order.
void AddMass(Position logical, double mass, std::vector<GivenMass>* list);

// Places in `resident` and in `recalled` that change: the recalled block that was given most for
// the resident one that was given least, and so on while the former was given more than `factor`
// times as much as the latter. Of equal ones the newer stay or come first.
struct Exchange {
  std::size_t resident = 0;
  std::size_t recalled = 0;
};
std::vector<Exchange> EarnedPlaces(std::span<const GivenMass> resident,
                                   std::span<const GivenMass> recalled, double factor);

}  // namespace carousel
