// SPDX-License-Identifier: Apache-2.0
// Which of its forgotten blocks a KV head recalls. Nothing here changes what lasts.
//
// Coarse first: sketches name a few times as many blocks as are wanted. Then exactly: the
// attention that these and the resident blocks would get together, each query head's own softmax
// over both, summed over the KV head's query heads and the queries. A candidate is weighed at the
// farthest place that it could take, before all that is resident, so that angles stay inside the
// trained window.
#pragma once

#include <cstdint>
#include <span>
#include <vector>

#include "cache/recall_store.h"
#include "engine/recall_part.h"
#include "engine/recall_state.h"

namespace carousel {

// So few stored blocks are all judged by their keys. Of more, sketches name some: so many for
// tokens of a prompt, and for a token of an answer.
inline constexpr std::int64_t kFewStored = 128;
inline constexpr std::int64_t kFewestCandidates = 128;
inline constexpr std::int64_t kFewestOfAnswers = 64;

// How many of a part's queries choose for all of them: the last ones.
std::int64_t VotersOf(const RecallConfig& config, const RecallPart& part);
// These queries over the part's KV head alone; its blocks are the caller's.
AttentionInput Voters(const RecallConfig& config, const RecallLayer& layer, const RecallPart& part);

// From where the model wrote a query to behind all that is resident, in tokens: what a candidate
// that was written at 0 would need. 0 where tokens keep their positions.
std::int64_t FarShift(const RecallState& state, const RecallLayer& layer, std::int64_t group);

// Fills part->candidates with the blocks that are worth a look at their keys, in stream order: all,
// if they are few; else by their sketches. Rotation tables reach as far as FarShift.
void FindCandidates(const RecallState& state, const RecallLayer& layer, RecallPart* part);
// Fills part->blocks and placements: resident blocks where they are, candidates at the far end; in
// stream order.
void PlaceCandidates(const RecallState& state, const RecallLayer& layer, RecallPart* part);

// A candidate and what the voters gave it.
struct WeighedBlock {
  float mass = 0.0F;
  RecallChoice choice;
};
// The part's candidates by their mass, the `wanted` heaviest first in their order, the rest in any.
// Of equal ones the newer is heavier.
void RankCandidates(const RecallPart& part, std::int64_t block_size, std::int64_t wanted,
                    std::vector<WeighedBlock>* ranked);
// By how much `kept` gives the head more attention than the former choice would have.
double GainOver(std::span<const RecallChoice> former, std::span<const WeighedBlock> kept,
                std::span<const WeighedBlock> all);

// A stored block at its place, for attention.
AttentionBlock StoredBlockAt(const RecallState& state, std::int64_t lane, std::int64_t slot,
                             const BlockPlacement& place);

}  // namespace carousel
