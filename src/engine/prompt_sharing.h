// SPDX-License-Identifier: Apache-2.0
// Prompts that begin alike are read once: what a running request does with the index of
// checkpoints.
#pragma once

#include <cstdint>
#include <optional>

#include "engine/prefix_index.h"
#include "engine/sequence_run.h"

namespace carousel {

// The request's prompt as the index knows it; nullopt where it cannot begin at a checkpoint: the
// sequence has read something, every token is to be scored or watched, where chunks end hangs on
// more than the tokens before, or a checkpoint's stored blocks would cost a limit that all share.
std::optional<PrefixChain> ChainOfRequest(const PrefixIndex& index, const SequenceRun& run);

// Goes on from the deepest checkpoint that has read more than `run` has. Returns how many tokens
// more; 0: there is none, or no room for another sequence.
std::int64_t GoOnFromCheckpoint(const PrefixChain& chain, PrefixIndex* index, SequenceRun* run);

// After a step: keeps what has been read as a checkpoint, where there is room. False: from here on
// the sequence is its request's own.
bool KeepCheckpoint(const PrefixChain& chain, PrefixIndex* index, const SequenceRun& run);

// Stands for the prompt up to the end of its next chunk; 0: what comes of it is the request's own.
std::uint64_t NextChunkOf(const PrefixChain& chain, const SequenceRun& run);

}  // namespace carousel
