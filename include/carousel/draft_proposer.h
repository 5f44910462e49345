// SPDX-License-Identifier: Apache-2.0
// Speculation: guesses at an answer's next tokens, several of which one forward pass tests.
//
// A guess is a draft of tokens. The pass reads the draft behind the answer's last token, and each
// token is drawn from the model's own distribution as it would be without a draft; as long as the
// draft has the same token, the next one is drawn from the same pass. So the answer is the same,
// token by token and draw by draw, but for how the model's products round with more rows; for a
// draft without probabilities this is the rejection rule of Leviathan et al. 2023. What was wrong
// in a draft leaves no trace in the cache.
#pragma once

#include <cstdint>
#include <span>
#include <vector>

#include "carousel/types.h"

namespace carousel {

// Guesses for one request. Called between passes, from the thread that steps the engine.
class DraftProposer {
 public:
  virtual ~DraftProposer() = default;
  // Tokens of the sequence, in order, each once: all that it has read, with what the engine has
  // long evicted, then the request's prompt, then the answer as it grows.
  virtual void See(std::span<const TokenId> tokens) = 0;
  // Appends what may follow the tokens seen to `draft`, which is empty, at most `most` > 0 tokens;
  // none where there is nothing to go by.
  virtual void Propose(std::int64_t most, std::vector<TokenId>* draft) = 0;
};

}  // namespace carousel
