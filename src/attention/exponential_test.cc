// SPDX-License-Identifier: Apache-2.0
// The softmax's exponential against the library's, on every instruction set that this machine has.
#include <gtest/gtest.h>

#include <cmath>
#include <limits>
#include <vector>

#undef HWY_TARGET_INCLUDE
#define HWY_TARGET_INCLUDE "attention/exponential_test.cc"
#include <hwy/foreach_target.h>
// Highway's own headers come after foreach_target.
#include <hwy/highway.h>

#include "attention/exponential-inl.h"

HWY_BEFORE_NAMESPACE();
namespace carousel {
namespace HWY_NAMESPACE {

// count is a multiple of 64.
void ExponentiateAll(const float* from, std::size_t count, float* to) {
  const hn::ScalableTag<float> d;
  for (std::size_t i = 0; i < count; i += hn::Lanes(d))
    hn::StoreU(ExponentialOfNegative(d, hn::LoadU(d, from + i)), d, to + i);
}

}  // namespace HWY_NAMESPACE
}  // namespace carousel
HWY_AFTER_NAMESPACE();

#if HWY_ONCE
namespace carousel {
HWY_EXPORT(ExponentiateAll);
namespace {

TEST(ExponentialOfNegative, EqualsTheLibrarysOnEveryTarget) {
  std::vector<float> from;
  for (int i = 0; i < 64 * 4096; ++i) from.push_back(-87.0F * static_cast<float>(i) / (64 * 4096));
  from[1] = -0.0F;
  std::vector<float> to(from.size());
  for (const auto target : hwy::SupportedAndGeneratedTargets()) {
    SCOPED_TRACE(hwy::TargetName(target));
    hwy::SetSupportedTargetsForTest(target);
    HWY_DYNAMIC_DISPATCH(ExponentiateAll)(from.data(), from.size(), to.data());
    EXPECT_NEAR(to[0], 1.0F, 2e-7F);
    for (std::size_t i = 0; i < from.size(); ++i) {
      const double expected = std::exp(static_cast<double>(from[i]));
      ASSERT_NEAR(to[i] / expected, 1.0, 3e-7 + 7.5e-8 * std::abs(from[i])) << from[i];
    }
  }
  hwy::SetSupportedTargetsForTest(0);
}

TEST(ExponentialOfNegative, IsZeroForWhatIsHidden) {
  std::vector<float> from(64, -std::numeric_limits<float>::infinity());
  for (std::size_t i = 32; i < 64; ++i)
    from[i] = -88.0F * std::pow(1.5F, static_cast<float>(i - 32));
  std::vector<float> to(from.size(), 1.0F);
  for (const auto target : hwy::SupportedAndGeneratedTargets()) {
    SCOPED_TRACE(hwy::TargetName(target));
    hwy::SetSupportedTargetsForTest(target);
    HWY_DYNAMIC_DISPATCH(ExponentiateAll)(from.data(), from.size(), to.data());
    for (const float x : to) ASSERT_EQ(x, 0.0F);
  }
  hwy::SetSupportedTargetsForTest(0);
}

}  // namespace
}  // namespace carousel
#endif
