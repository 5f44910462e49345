// SPDX-License-Identifier: Apache-2.0
#include "measure/contender.h"

#include "base/check.h"
#include "base/clock.h"

namespace carousel {
std::vector<Spread> TakeTurns(std::span<Contender* const> contenders, const Rounds& rounds,
                              const std::function<void(std::int64_t)>& on_round) {
  CAROUSEL_CHECK_GT(rounds.count, 0);
  on_round(0);
  for (Contender* contender : contenders) contender->Run();
  std::vector<std::vector<double>> seconds(contenders.size());
  const auto begin = Clock::now();
  for (std::int64_t round = 0; round < rounds.count; ++round) {
    if (round > 0 && SecondsSince(begin) > rounds.enough_seconds) break;
    on_round(round + 1);
    for (std::size_t turn = 0; turn < contenders.size(); ++turn) {
      const std::size_t i = round % 2 == 0 ? turn : contenders.size() - 1 - turn;
      const auto begin_of_run = Clock::now();
      contenders[i]->Run();
      seconds[i].push_back(SecondsSince(begin_of_run));
    }
  }
  std::vector<Spread> spreads;
  for (std::vector<double>& of_contender : seconds)
    spreads.push_back(SpreadOf(std::move(of_contender)));
  return spreads;
}

}  // namespace carousel
