// SPDX-License-Identifier: Apache-2.0
// Drives a fuzz target without libFuzzer: its seeds, mutations of them, and random bytes; the same
// ones each time.
#include <gtest/gtest.h>

#include <random>

#include "fuzz/fuzz_target.h"
#include "testing/random_cases.h"

namespace carousel {
namespace {

constexpr int kInputs = OddInputs(1500);

void RunTarget(const std::string& input) {
  LLVMFuzzerTestOneInput(reinterpret_cast<const std::uint8_t*>(input.data()), input.size());
}

class Mutator {
 public:
  std::string Random() {
    std::string input(Below(200), '\0');
    for (char& byte : input) byte = Byte();
    return input;
  }

  // A few edits: bytes changed, removed, inserted, a stretch of another input put in, the end cut
  // off.
  std::string Mutate(std::string input, const std::string& other) {
    for (std::size_t edits = 1 + Below(4); edits > 0; --edits) {
      const std::size_t at = Below(input.size() + 1);
      switch (Below(5)) {
        case 0:
          if (at < input.size()) input[at] = Byte();
          break;
        case 1:
          input.erase(at, 1 + Below(8));
          break;
        case 2:
          input.insert(at, 1 + Below(3), Byte());
          break;
        case 3: {
          const std::size_t begin = Below(other.size() + 1);
          input.insert(at, other, begin, Below(20));
          break;
        }
        default:
          input.resize(at);
      }
    }
    return input;
  }

  std::size_t Below(std::size_t end) { return generator_() % end; }

 private:
  char Byte() { return static_cast<char>(generator_() & 0xFFU); }
  std::mt19937 generator_{20250113};
};

TEST(Fuzz, NoInputCrashes) {
  const std::vector<std::string> seeds = FuzzSeeds();
  for (const std::string& seed : seeds) RunTarget(seed);
  Mutator mutator;
  for (int i = 0; i < kInputs; ++i) {
    RunTarget(mutator.Random());
    RunTarget(
        mutator.Mutate(seeds[mutator.Below(seeds.size())], seeds[mutator.Below(seeds.size())]));
  }
}

}  // namespace
}  // namespace carousel
