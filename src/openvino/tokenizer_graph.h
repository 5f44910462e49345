// SPDX-License-Identifier: Apache-2.0
// OpenVINO Tokenizers: its library of operations, and the edits that its graphs need for endless
// text.
#pragma once

#include <cstdint>
#include <memory>
#include <openvino/core/model.hpp>
#include <openvino/runtime/core.hpp>
#include <vector>

#include "carousel/tokenizer.h"

namespace carousel {

// Teaches `core` the tokenizers' operations. The library is looked for where the environment
// variable CAROUSEL_TOKENIZERS_LIBRARY says, then in the wheel beside the one that OpenVINO was
// loaded from, then where it was when Carousel was built. Throws carousel::Error (kModel,
// "tokenizer") that names all three. What the core reads with it must be gone before the core is.
void AddTokenizerOperations(ov::Core& core);

// Lifts the limit that exported tokenizers put on a text's tokens, silently (the model's window,
// for a model that was never meant to go past it). Returns the smallest limit found; 0: there was
// none.
std::int64_t LiftTruncation(ov::Model& tokenizer);

struct DetokenizerFacts {
  std::int64_t vocabulary_size = 0;  // 0: the graph does not say
  // What the graph leaves out of a text; empty where it does not say.
  std::vector<ControlToken> control_tokens;
};

// Special tokens are left out, and bytes that are not yet whole UTF-8 characters stay as they are.
DetokenizerFacts AdaptDetokenizer(ov::Model& detokenizer);

}  // namespace carousel
