// SPDX-License-Identifier: Apache-2.0
#include "base/prefetch.h"

#if defined(__x86_64__) && __has_include(<cpuid.h>)
#include <cpuid.h>
#endif

namespace carousel {
namespace {

bool IsZen5() {
#if defined(__x86_64__) && __has_include(<cpuid.h>)
  unsigned eax = 0;
  unsigned ebx = 0;
  unsigned ecx = 0;
  unsigned edx = 0;
  if (__get_cpuid(0, &eax, &ebx, &ecx, &edx) == 0 || ebx != signature_AMD_ebx) return false;
  if (__get_cpuid(1, &eax, &ebx, &ecx, &edx) == 0) return false;
  constexpr unsigned kZen5 = 26;
  return ((eax >> 8) & 0xF) + ((eax >> 20) & 0xFF) == kZen5;  // family, its extension
#else
  return false;
#endif
}

}  // namespace

bool FetchesIntoFirstLevel() {
  static const bool first_level = IsZen5();
  return first_level;
}

}  // namespace carousel
