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
void ExponentiateAll(const float* from, std::size_t count, float largest, float* to) {
  const hn::ScalableTag<float> d;
  const auto shift = hn::Set(d, -largest * kBinaryDigits);
  for (std::size_t i = 0; i < count; i += hn::Lanes(d))
    hn::StoreU(ExponentialOfDifference(d, hn::LoadU(d, from + i), shift), d, to + i);
}

}  // namespace HWY_NAMESPACE
}  // namespace carousel
HWY_AFTER_NAMESPACE();

#if HWY_ONCE
namespace carousel {
HWY_EXPORT(ExponentiateAll);
namespace {

TEST(ExponentialOfDifference, EqualsTheLibrarysOnEveryTarget) {
  for (const float largest : {0.0F, 3.25F, -41.0F, 170.0F}) {
    std::vector<float> from;
    for (int i = 0; i < 64 * 4096; ++i)
      from.push_back(largest - 87.0F * static_cast<float>(i) / (64 * 4096));
    if (largest == 0.0F) from[1] = -0.0F;
    std::vector<float> to(from.size());
    for (const auto target : hwy::SupportedAndGeneratedTargets()) {
      SCOPED_TRACE(hwy::TargetName(target));
      hwy::SetSupportedTargetsForTest(target);
      const bool fused = target != HWY_SCALAR && target != HWY_EMU128;
      HWY_DYNAMIC_DISPATCH(ExponentiateAll)(from.data(), from.size(), largest, to.data());
      if (largest == 0.0F) {
        EXPECT_NEAR(to[0], 1.0F, 2e-7F);
      }
      for (std::size_t i = 0; i < from.size(); ++i) {
        const double difference = static_cast<double>(from[i]) - static_cast<double>(largest);
        const double rounding = 7.5e-8 * std::abs(difference) + 1.2e-7 * std::abs(largest);
        ASSERT_NEAR(to[i] / std::exp(difference), 1.0, 3e-7 + (fused ? 1 : 2) * rounding)
            << from[i];
      }
    }
  }
  hwy::SetSupportedTargetsForTest(0);
}

TEST(ExponentialOfDifference, IsZeroForWhatIsHidden) {
  std::vector<float> from(64, -std::numeric_limits<float>::infinity());
  for (std::size_t i = 32; i < 64; ++i)
    from[i] = -88.1F * std::pow(1.5F, static_cast<float>(i - 32));
  std::vector<float> to(from.size(), 1.0F);
  for (const auto target : hwy::SupportedAndGeneratedTargets()) {
    SCOPED_TRACE(hwy::TargetName(target));
    hwy::SetSupportedTargetsForTest(target);
    HWY_DYNAMIC_DISPATCH(ExponentiateAll)(from.data(), from.size(), 0.0F, to.data());
    for (const float x : to) ASSERT_EQ(x, 0.0F);
  }
  hwy::SetSupportedTargetsForTest(0);
}

// On the way to 0 no result is a number of its own.
TEST(ExponentialOfDifference, StaysSmallWhereItEnds) {
  std::vector<float> from;
  for (int i = 0; i < 64 * 256; ++i) from.push_back(-87.0F - static_cast<float>(i) / (64 * 128));
  std::vector<float> to(from.size());
  for (const auto target : hwy::SupportedAndGeneratedTargets()) {
    SCOPED_TRACE(hwy::TargetName(target));
    hwy::SetSupportedTargetsForTest(target);
    HWY_DYNAMIC_DISPATCH(ExponentiateAll)(from.data(), from.size(), 0.0F, to.data());
    for (std::size_t i = 0; i < from.size(); ++i)
      ASSERT_NEAR(to[i], std::exp(static_cast<double>(from[i])), 1.2e-38) << from[i];
  }
  hwy::SetSupportedTargetsForTest(0);
}

}  // namespace
}  // namespace carousel
#endif
