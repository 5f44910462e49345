// SPDX-License-Identifier: Apache-2.0
// Recall by definition: evicted blocks are weighed by their keys, all or, of many, those that their
// sketches name; the ones that would get most attention stand among what is kept. How often that is
// done is each head's own, by what it gains (RecallConfig: chunk, every, least_gain).
#pragma once

#include <cstdint>
#include <map>
#include <vector>

#include "attention/reference.h"
#include "carousel/model.h"
#include "carousel/single_sequence_engine.h"
#include "rope/rope_spec.h"

namespace carousel::testing {

// Attention mass by block of the stream, logical / block_size.
using MassByBlock = std::map<std::int64_t, double>;

// One KV head of a layer.
struct NaiveHead {
  AttentionLayerSpec spec;
  LayerRope rope;
  std::vector<ReferenceToken> kept;     // in stream order, the queries' own tokens among them
  std::vector<ReferenceToken> evicted;  // likewise
};

// What lasts of a head's recall from step to step.
struct NaiveHabit {
  std::vector<std::int64_t> choice;  // blocks
  std::int64_t chunks = 1;           // of a prompt that share a choice
  std::int64_t interval = 1;         // tokens of an answer that the last choice is for
  std::int64_t holds = 0;            // so many tokens of an answer more
};

// What recall has done: a test that counts none of something says nothing about it.
struct NaiveRecallCounts {
  // Choices that count for how often the next ones come.
  std::int64_t little_gains_in_prompts = 0;
  std::int64_t large_gains_in_prompts = 0;
  std::int64_t little_gains_in_answers = 0;
  std::int64_t large_gains_in_answers = 0;
  std::int64_t sketched = 0;    // choices for which sketches named candidates
  std::int64_t overlooked = 0;  // of these, such as would be others if all blocks were weighed
  // Choices between two that are the same as far as rounding can tell: what the engine does from
  // here on is not known.
  std::int64_t undecided = 0;
};

struct NaiveRecalled {
  ReferenceOutput output;          // its mass: [queries, kept]
  std::vector<MassByBlock> given;  // [queries], to recalled blocks
};

// A step of an answer or of a prompt.
struct NaiveStep {
  PositionPolicy mode = PositionPolicy::kCompact;  // or kKeep: where tokens stand
  bool is_prompt = false;
};

// `queries` of a step over what the head keeps and recalls.
NaiveRecalled AttendWithRecall(const EngineConfig& config, const NaiveStep& step,
                               const NaiveHead& head, const std::vector<ReferenceQuery>& queries,
                               NaiveHabit* habit, NaiveRecallCounts* counts);

}  // namespace carousel::testing
