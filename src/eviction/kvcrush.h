// SPDX-License-Identifier: Apache-2.0
// KVCrush: some room is kept for blocks that stand for what the scores would drop. Jha et al. 2025,
// "KVCrush: Key Value Size-Reduction Using Similarity in Head-Behaviour", in the form of
// openvino.genai's documentation: a token's indicator is 1 when its score is in the upper half of
// the candidates' tokens; blocks that the scores drop are sorted by the Hamming distance between
// their indicators and an anchor, and the budget's representatives are taken evenly spaced from
// there.
//
// The budget is part of the cache, not on top of it: the score chooses that many blocks more, and
// as many are taken back.
#pragma once

#include <memory>

#include "eviction/policy.h"

namespace carousel {

std::unique_ptr<Policy> MakeKvCrush(std::unique_ptr<Policy> scores, const PolicyContext& context);

}  // namespace carousel
