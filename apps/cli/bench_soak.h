// SPDX-License-Identifier: Apache-2.0
// carousel bench serve --seconds: the same kind of load for a long time, to see whether anything
// grows.
#pragma once

#include "cli/backend.h"
#include "cli/bench_flags.h"
#include "cli/console.h"

namespace carousel {

// Serves random requests for flags.seconds, flags.cancel_share of which are cancelled at some
// moment, and says at intervals what is held. Half of the prompts begin alike, and half of the
// answers are guessed ahead. Returns 1 where blocks are left at the end that no checkpoint holds,
// else 0.
int RunSoak(const BenchServeFlags& flags, Backend* backend, Console* console);

}  // namespace carousel
