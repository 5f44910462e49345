// SPDX-License-Identifier: Apache-2.0
// What the splits of a context have left behind, put together: the outputs and the mass.
#pragma once

#include <cstdint>

#include "attention/attention_scratch.h"
#include "attention/paged_attention.h"

namespace carousel {

// Merges the splits of a tile, the task's `tile`-th, into its rows of task.output.out.
void MergeTile(const AttentionTask& task, const TaskPlan& plan, std::int64_t tile,
               const AttentionScratch& scratch);

// task.output.token_mass of one split's tokens: over all heads and counted rows.
void GatherMass(const AttentionTask& task, const TaskPlan& plan, std::int64_t split,
                const AttentionScratch& scratch);

}  // namespace carousel
