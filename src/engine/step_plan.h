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
  std::int64_t tokens = 0;       // to append; at most what SequenceTables::LimitStep allowed
  bool is_prompt = false;        // false: decode, which stays within max_cache_size
  std::int64_t prompt_left = 0;  // prompt tokens that follow after this step
};

// One cache group's part of a step.
struct GroupPlan {
  std::vector<AttentionBlock> blocks;  // the step's own tokens included
  Position first_query_attention;
};

// Nobody changes it after it was made.
struct StepPlan {
  std::int64_t tokens = 0;
  bool is_prompt = false;
  std::vector<std::int64_t> position_ids;  // [tokens], written positions
  std::vector<GroupPlan> groups;
  Position first_query_logical;
  std::int64_t policy_queries = 0;   // that the policies want counted
  std::int64_t counted_queries = 0;  // that are
  std::int64_t evicted_tokens = 0;   // in the group that lost most
  std::int64_t rotated_keys = 0;  // key rotation: tokens whose keys were rewritten, over all groups
};

}  // namespace carousel
