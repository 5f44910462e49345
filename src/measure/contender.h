// SPDX-License-Identifier: Apache-2.0
// Things to be timed side by side. They take turns in one process, so that whatever else the
// machine does meanwhile falls on all of them.
#pragma once

#include <cstdint>
#include <functional>
#include <span>
#include <vector>

#include "measure/statistics.h"

namespace carousel {

class Contender {
 public:
  virtual ~Contender() = default;
  // What is timed, once. Throws carousel::Error when it cannot be done.
  virtual void Run() = 0;
};

struct Rounds {
  std::int64_t count = 0;  // at least 1
  // No round begins after so much time, the first excepted; a warm-up round is not counted.
  double enough_seconds = 0.0;
};

// Runs every contender once as a warm-up, whose times are dropped, then round by round, every other
// round in reverse. Returns the seconds of each contender's run. `on_round` hears which round
// begins; 0 is the warm-up.
std::vector<Spread> TakeTurns(std::span<Contender* const> contenders, const Rounds& rounds,
                              const std::function<void(std::int64_t)>& on_round);

}  // namespace carousel
