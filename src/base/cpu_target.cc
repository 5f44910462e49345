// SPDX-License-Identifier: Apache-2.0
#include "base/cpu_target.h"

#include <fmt/format.h>

#include <cctype>
#include <cstdlib>
#include <string>

#include "carousel/error.h"

// For the list of the targets that kernels are compiled for.
#undef HWY_TARGET_INCLUDE
#define HWY_TARGET_INCLUDE "base/cpu_target.cc"
#include <hwy/foreach_target.h>
// Highway's own headers come after foreach_target.
#include <hwy/highway.h>

#if HWY_ONCE
namespace carousel {
namespace {

constexpr const char* kVariable = "CAROUSEL_FORCE_TARGET";

bool EqualInAnyCase(std::string_view a, std::string_view b) {
  if (a.size() != b.size()) return false;
  for (std::size_t i = 0; i < a.size(); ++i) {
    if (std::tolower(static_cast<unsigned char>(a[i])) !=
        std::tolower(static_cast<unsigned char>(b[i])))
      return false;
  }
  return true;
}

}  // namespace

void ForceCpuTarget(std::string_view name) {
  hwy::SetSupportedTargetsForTest(0);  // or only what was pinned before would be listed
  std::string available;
  for (const std::int64_t target : hwy::SupportedAndGeneratedTargets()) {
    if (EqualInAnyCase(name, hwy::TargetName(target))) {
      hwy::SetSupportedTargetsForTest(target);
      return;
    }
    available += fmt::format("{}{}", available.empty() ? "" : ", ", hwy::TargetName(target));
  }
  throw Error(ErrorCode::kInvalidArgument, kVariable,
              fmt::format("'{}' is no instruction set that this program and this CPU both have; "
                          "there are: {}",
                          name, available));
}

void ForceCpuTargetFromEnvironment() {
  static const std::string name = [] {
    const char* value = std::getenv(kVariable);
    return std::string(value == nullptr ? "" : value);
  }();
  if (name.empty()) return;
  static const bool forced = (ForceCpuTarget(name), true);
  static_cast<void>(forced);
}

}  // namespace carousel
#endif
