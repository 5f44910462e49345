// SPDX-License-Identifier: Apache-2.0
// What every fuzz target has: libFuzzer's function, and inputs to start from.
#pragma once

#include <cstddef>
#include <cstdint>
#include <string>
#include <vector>

// Crashes when something is wrong; returns 0.
extern "C" int LLVMFuzzerTestOneInput(const std::uint8_t* data, std::size_t size);

namespace carousel {

// Inputs that reach deep, to be mutated by fuzz_test.cc.
std::vector<std::string> FuzzSeeds();

}  // namespace carousel
