// SPDX-License-Identifier: Apache-2.0
// The instruction set that kernels run on: the best that the CPU has, unless the environment
// variable CAROUSEL_FORCE_TARGET names another, for tests and for looking at a fault.
#pragma once

#include <string_view>

namespace carousel {

// Pins the instruction set of every kernel that is dispatched from now on, in the whole process, to
// the one with Highway's name `name` ("AVX2", "AVX3", "AVX3_DL", "SCALAR"; AVX3 is AVX-512, AVX3_DL
// that with VNNI), in any case. Throws carousel::Error (kInvalidArgument) when there is none of
// that name or this CPU lacks it; then nothing is pinned.
void ForceCpuTarget(std::string_view name);

// ForceCpuTarget of CAROUSEL_FORCE_TARGET if that is set and not empty. Reads it once; throws each
// time that it is called when the value is wrong.
void ForceCpuTargetFromEnvironment();

}  // namespace carousel
