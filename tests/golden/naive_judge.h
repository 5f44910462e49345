// SPDX-License-Identifier: Apache-2.0
// A naive engine that keeps a list of tokens per group, in double, and does everything by
// definition: no blocks, no shifts, no chunks of attention. What the real one must equal. Policies
// are the real ones (src/eviction/policies_test.cc holds each against its rule), but see what the
// naive lists hold.
#pragma once

#include <span>

#include "carousel/model.h"
#include "carousel/single_sequence_engine.h"
#include "golden/naive_recall.h"
#include "rope/rope_spec.h"

namespace carousel::testing {

struct NaiveRun {
  Model* model = nullptr;  // the same as the engine's, and another one
  const RopeSpec* rope = nullptr;
  const EngineConfig* config = nullptr;  // the engine's, with eviction
  std::span<const TokenId> tokens;
  TokenSpan pinned;        // of the tokens; empty: none
  double tolerance = 0.0;  // nats
  // The tokens come in so many prompts, and after each the engine says so many of its own,
  // greedily.
  std::int64_t turns = 1;
  std::int64_t answer_tokens = 0;
};

struct NaiveReport {
  // Of the stream, read by both with the same result; all of them, unless rounding alone decided
  // what is recalled: the comparison ends there.
  std::int64_t judged_tokens = 0;
  NaiveRecallCounts recall;
};

// Feeds both the tokens, step by step as the engine takes them, and expects the same likelihood of
// each, as many of them, and the likeliest word of the naive one wherever the engine says one.
NaiveReport ExpectSameLikelihoods(SingleSequenceEngine& engine, const NaiveRun& run);

}  // namespace carousel::testing
