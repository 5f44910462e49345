// SPDX-License-Identifier: Apache-2.0
// A step of one sequence before it runs: what is asked, and everything that the forward pass needs.
#pragma once

#include <cstdint>
#include <vector>

#include "attention/paged_attention.h"
#include "carousel/types.h"

namespace carousel {

// What a step will do.
struct StepRequest {
  // To append; of a prompt at most what SequenceTables::LimitStep allowed. Of an answer the first
  // is its last token, and the others are guesses at what follows (carousel/draft_proposer.h).
  std::int64_t tokens = 0;
  bool is_prompt = false;        // false: decode, which stays within max_cache_size
  std::int64_t prompt_left = 0;  // prompt tokens that follow after this step
};

// One cache group's part of a stage.
struct GroupPlan {
  std::vector<AttentionBlock> blocks;  // the stage's own tokens included
  Position first_query_attention;
};

// Tokens of a step that see the cache alike. A prompt's chunk is one stage. Each token of an answer
// is one: it sees what it would see if those before it had been steps of their own. So a step of
// several tokens of an answer is as many steps in one pass, and of them the first few can be
// committed.
struct StagePlan {
  std::int64_t first_token = 0;  // of the step's
  std::int64_t tokens = 0;
  Position first_query_logical;
  std::vector<GroupPlan> groups;
};

// Nobody changes it after it was made.
struct StepPlan {
  std::int64_t tokens = 0;
  bool is_prompt = false;
  std::vector<std::int64_t> position_ids;  // [tokens], written positions
  std::int64_t stage_count = 0;
  std::vector<StagePlan> stages;  // [stage_count] and more, which keep their memory
  Position first_query_logical;
  std::int64_t policy_queries = 0;   // of a stage, that the policies want counted
  std::int64_t counted_queries = 0;  // that are
  std::int64_t evicted_tokens = 0;   // in the group that lost most
  std::int64_t rotated_keys = 0;  // key rotation: tokens whose keys were rewritten, over all groups
};

}  // namespace carousel
