// SPDX-License-Identifier: Apache-2.0
// What tests draw at random.
#pragma once

#include <cstdint>
#include <random>
#include <vector>

#include "carousel/types.h"

namespace carousel {

using Generator = std::mt19937_64;

// A number from `least` to `most`, both included.
inline std::int64_t Pick(Generator* generator, std::int64_t least, std::int64_t most) {
  return least +
         static_cast<std::int64_t>((*generator)() % static_cast<std::uint64_t>(most - least + 1));
}

// Words of TinyModel's vocabulary.
inline std::vector<TokenId> Tokens(Generator* generator, std::int64_t count) {
  std::vector<TokenId> tokens;
  for (std::int64_t i = 0; i < count; ++i)
    tokens.push_back(static_cast<TokenId>((*generator)() % 61));
  return tokens;
}

}  // namespace carousel
