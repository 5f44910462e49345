// SPDX-License-Identifier: Apache-2.0
#include "base/cpu_target.h"

#include <gtest/gtest.h>

#undef HWY_TARGET_INCLUDE
#define HWY_TARGET_INCLUDE "base/cpu_target_test.cc"
#include <hwy/foreach_target.h>
// Highway's own headers come after foreach_target.
#include <hwy/highway.h>

HWY_BEFORE_NAMESPACE();
namespace carousel {
namespace HWY_NAMESPACE {
std::int64_t TargetInUse() { return HWY_TARGET; }
}  // namespace HWY_NAMESPACE
}  // namespace carousel
HWY_AFTER_NAMESPACE();

#if HWY_ONCE
#include "carousel/error.h"

namespace carousel {
HWY_EXPORT(TargetInUse);
namespace {

TEST(ForceCpuTarget, EveryTargetThatTheCpuHasCanBePinned) {
  for (const std::int64_t target : hwy::SupportedAndGeneratedTargets()) {
    ForceCpuTarget(hwy::TargetName(target));
    EXPECT_EQ(HWY_DYNAMIC_DISPATCH(TargetInUse)(), target) << hwy::TargetName(target);
  }
  hwy::SetSupportedTargetsForTest(0);
}

TEST(ForceCpuTarget, NamesAreTakenInAnyCase) {
  const auto targets = hwy::SupportedAndGeneratedTargets();
  std::string name = hwy::TargetName(targets.back());
  for (char& c : name) c = static_cast<char>(std::tolower(static_cast<unsigned char>(c)));
  ForceCpuTarget(name);
  EXPECT_EQ(HWY_DYNAMIC_DISPATCH(TargetInUse)(), targets.back());
  hwy::SetSupportedTargetsForTest(0);
}

TEST(ForceCpuTarget, WhatTheCpuLacksIsRefusedWithWhatItHas) {
  for (const char* name : {"NEON", "", "AVX2 ", "avx"}) {
    try {
      ForceCpuTarget(name);
      FAIL() << name;
    } catch (const Error& error) {
      EXPECT_EQ(error.field(), "CAROUSEL_FORCE_TARGET");
      const std::string best = hwy::TargetName(hwy::SupportedAndGeneratedTargets().front());
      EXPECT_NE(error.problem().find(best), std::string::npos) << error.what();
    }
  }
}

}  // namespace
}  // namespace carousel
#endif
