// SPDX-License-Identifier: Apache-2.0
// Which sequences a step moves. Counts only: it sees no tokens and no blocks.
//
// Every answer that has begun gets its row in every step. Beside them at least one prompt's next
// chunk is read, the one that has waited longest, and more as long as rows are left. A chunk is
// read whole or waits, so that what a sequence forgets never hangs on who runs beside it.
#pragma once

#include <cstdint>
#include <span>
#include <vector>

namespace carousel {

// A running request.
struct Runnable {
  std::int64_t rows = 0;       // of its next step
  bool is_prompt = false;      // reads a chunk; false: says a token
  std::int64_t last_step = 0;  // that moved it; smaller than the present one's number
};

// The ones that move, ascending, at least one. Of P prompts each moves at least every P-th step.
// Rows stay within max_rows, to which the answers and the largest chunk together come at most.
std::vector<std::size_t> ChooseRunning(std::span<const Runnable> running, std::int64_t max_rows);

// The one that has waited longest, alone: for models whose graph knows one sequence.
std::vector<std::size_t> ChooseOne(std::span<const Runnable> running);

}  // namespace carousel
