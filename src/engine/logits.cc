// SPDX-License-Identifier: Apache-2.0
#include "engine/logits.h"

#include <algorithm>
#include <cmath>
#include <limits>

#undef HWY_TARGET_INCLUDE
#define HWY_TARGET_INCLUDE "engine/logits.cc"
#include <hwy/foreach_target.h>
// Highway's own headers come after foreach_target.
#include <hwy/contrib/math/math-inl.h>
#include <hwy/highway.h>

HWY_BEFORE_NAMESPACE();
namespace carousel {
namespace HWY_NAMESPACE {
namespace hn = hwy::HWY_NAMESPACE;

float Largest(const float* values, std::int64_t count) {
  const hn::ScalableTag<float> d;
  const auto lanes = static_cast<std::int64_t>(hn::Lanes(d));
  float largest = -std::numeric_limits<float>::infinity();
  std::int64_t i = 0;
  if (count >= lanes) {
    auto many = hn::LoadU(d, values);
    for (; i + lanes <= count; i += lanes) many = hn::Max(many, hn::LoadU(d, values + i));
    largest = hn::GetLane(hn::MaxOfLanes(d, many));
  }
  for (; i < count; ++i) largest = std::max(largest, values[i]);
  return largest;
}

// Sum of exp(value - largest). Runs of lanes are added in double, so a large vocabulary loses
// nothing.
double SumExp(const float* values, std::int64_t count, float largest) {
  const hn::ScalableTag<float> d;
  const auto lanes = static_cast<std::int64_t>(hn::Lanes(d));
  constexpr std::int64_t kRun = 64;  // vectors
  const auto shift = hn::Set(d, largest);
  double total = 0.0;
  std::int64_t i = 0;
  while (i + lanes <= count) {
    auto sum = hn::Zero(d);
    for (std::int64_t v = 0; v < kRun && i + lanes <= count; ++v, i += lanes) {
      sum = hn::Add(sum, hn::Exp(d, hn::Sub(hn::LoadU(d, values + i), shift)));
    }
    total += static_cast<double>(hn::GetLane(hn::SumOfLanes(d, sum)));
  }
  for (; i < count; ++i)
    total += std::exp(static_cast<double>(values[i]) - static_cast<double>(largest));
  return total;
}

}  // namespace HWY_NAMESPACE
}  // namespace carousel
HWY_AFTER_NAMESPACE();

#if HWY_ONCE
namespace carousel {
HWY_EXPORT(Largest);
HWY_EXPORT(SumExp);

double LogSumExp(std::span<const float> logits) noexcept {
  const auto count = static_cast<std::int64_t>(logits.size());
  const float largest = HWY_DYNAMIC_DISPATCH(Largest)(logits.data(), count);
  if (std::isinf(largest)) return static_cast<double>(largest);
  return static_cast<double>(largest) +
         std::log(HWY_DYNAMIC_DISPATCH(SumExp)(logits.data(), count, largest));
}

TokenId ArgMax(std::span<const float> logits) noexcept {
  const float largest =
      HWY_DYNAMIC_DISPATCH(Largest)(logits.data(), static_cast<std::int64_t>(logits.size()));
  const auto first = std::find(logits.begin(), logits.end(), largest);
  return first == logits.end() ? 0 : static_cast<TokenId>(first - logits.begin());
}

}  // namespace carousel
#endif
