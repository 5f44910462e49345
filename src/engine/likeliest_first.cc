// SPDX-License-Identifier: Apache-2.0
#include "engine/likeliest_first.h"

#include <algorithm>
#include <functional>
#include <limits>

namespace carousel {
namespace {

using Limits = std::numeric_limits<float>;

// How far below the largest logit the first slice reaches, in units of temperature (beyond lies
// what weighs less than 1/400 of the likeliest word), and how much further each next one does. At
// low temperatures a slice is as wide as at kLeastUnit, or there would be very many; after
// kFurthest comes all that is left.
constexpr double kFirstReach = 6.0;
constexpr double kGrowth = 1.5;
constexpr double kFurthest = 2000.0;
constexpr double kLeastUnit = 0.05;
constexpr std::size_t kSortedAtFirst = 64;

}  // namespace

void LikeliestFirst::Begin(const AdjustedLogits* logits, double temperature, float at_least) {
  logits_ = logits;
  at_least_ = std::max(at_least, Limits::lowest());
  unit_ = std::max(temperature, kLeastUnit);
  reach_ = kFirstReach;
  taken_down_to_ = Limits::infinity();
  sorted_ = 0;
  words_.clear();
  TakeMore();
}

bool LikeliestFirst::Has(std::size_t rank) {
  while (words_.size() <= rank) {
    if (taken_down_to_ <= at_least_) return false;
    TakeMore();
  }
  while (sorted_ <= rank) SortMore();
  return true;
}

void LikeliestFirst::TakeMore() {
  const double wanted = reach_ < kFurthest
                            ? static_cast<double>(logits_->largest()) - reach_ * unit_
                            : static_cast<double>(Limits::lowest());
  reach_ *= kGrowth;
  const auto down_to = static_cast<float>(std::max(wanted, static_cast<double>(at_least_)));
  logits_->AppendWords(down_to, taken_down_to_, &words_);
  taken_down_to_ = down_to;
}

void LikeliestFirst::SortMore() {
  const std::size_t end = std::min(words_.size(), std::max(kSortedAtFirst, 4 * sorted_));
  const auto at = [this](std::size_t i) { return words_.begin() + static_cast<std::ptrdiff_t>(i); };
  if (end < words_.size()) std::nth_element(at(sorted_), at(end), words_.end(), std::greater<>());
  std::sort(at(sorted_), at(end), std::greater<>());
  sorted_ = end;
}

}  // namespace carousel
