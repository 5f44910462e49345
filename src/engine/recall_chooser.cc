// SPDX-License-Identifier: Apache-2.0
#include "engine/recall_chooser.h"

#include <algorithm>

#include "attention/recall_sketch.h"
#include "engine/keep_largest.h"

namespace carousel {
namespace {

// Of more than a few stored blocks so many times the wanted ones are judged by their keys, and at
// least kFewestCandidates or, in an answer, kFewestOfAnswers: sketches' best 32 of 110 to 130
// blocks hold 98 to 100 % of the mass of the true best 8, and yet miss, once in a hundred choices,
// the one block that a retrieval head looks for (docs/decisions/0007-recall.md,
// 0014-what-recall-finds.md).
constexpr std::int64_t kCandidatesPerBlock = 4;

}  // namespace

AttentionInput SomeQueries(const AttentionInput& all, std::int64_t skipped, std::int64_t queries) {
  AttentionInput some = all;
  some.q += skipped * all.layer->query_heads * all.layer->key_dim;
  some.first_query_attention += skipped;
  some.first_query_logical += skipped;
  some.queries = queries;
  // The last ones are counted.
  some.counted_queries =
      std::clamp<std::int64_t>(skipped + queries - (all.queries - all.counted_queries), 0, queries);
  return some;
}

std::int64_t VotersOf(const RecallConfig& config, const RecallPart& part) {
  return std::min(part.queries, config.queries);
}

AttentionInput Voters(const RecallConfig& config, const RecallLayer& layer,
                      const RecallPart& part) {
  const std::int64_t voters = VotersOf(config, part);
  AttentionInput input = SomeQueries(layer.tasks[static_cast<std::size_t>(part.group)].input,
                                     part.first_query + part.queries - voters, voters);
  input.counted_queries = voters;
  input.first_kv_head += part.head;
  input.kv_heads = 1;
  return input;
}

std::int64_t FarShift(const RecallState& state, const RecallLayer& layer, std::int64_t group) {
  if (state.keeps_positions()) return 0;
  return layer.tables
      ->CandidatePlacement(layer.first_group + group,
                           {.written = Position{0}, .logical = Position{0}})
      .shift;
}

void FindCandidates(const RecallState& state, const RecallLayer& layer, RecallPart* part) {
  const RecallStore& store = state.store();
  const auto stored = store.in_order(part->lane);
  const std::int64_t by_blocks = state.config().blocks * kCandidatesPerBlock;
  if (std::ssize(stored) <= std::max(by_blocks, kFewStored)) {
    part->candidates.assign(stored.begin(), stored.end());
    return;
  }
  const std::int64_t wanted =
      std::max(by_blocks, layer.is_prompt ? kFewestCandidates : kFewestOfAnswers);
  const AttentionInput input = Voters(state.config(), layer, *part);
  const std::int64_t block_size = layer.tables->block_size();
  const auto slots = store.slots(part->lane);
  const std::int64_t far = input.first_query_attention.value;
  part->mass.resize(slots.size());
  EstimateMass({.layer = input.layer,
                .kv_head = input.first_kv_head,
                .q = input.q,
                .queries = input.queries,
                .rotation = layer.rotation,
                .shift_blocks = FarShift(state, layer, part->group) / block_size,
                .distance = state.keeps_positions() ? std::nullopt : std::optional(far),
                .first_query_logical = input.first_query_logical,
                .block_size = block_size,
                .sketches = store.sketches(part->lane),
                .slots = slots},
               part->mass);
  KeepLargest(stored, part->mass, wanted, &part->ranked, &part->candidates);
}

void PlaceCandidates(const RecallState& state, const RecallLayer& layer, RecallPart* part) {
  const auto slots = state.store().slots(part->lane);
  const auto resident = layer.tasks[static_cast<std::size_t>(part->group)].input.blocks;
  part->blocks.clear();
  part->placements.clear();
  std::size_t next = 0;
  const auto add_resident = [&](Position before) {
    for (; next < resident.size() && resident[next].logical < before; ++next) {
      part->placements.push_back({.index = static_cast<std::int64_t>(next)});
      part->blocks.push_back(resident[next]);
      part->blocks.back().first_head = part->head;
    }
  };
  for (std::size_t i = 0; i < part->candidates.size(); ++i) {
    const StoredBlock& stored = slots[static_cast<std::size_t>(part->candidates[i])];
    add_resident(stored.logical);
    BlockPlacement place = layer.tables->CandidatePlacement(
        layer.first_group + part->group, {.written = stored.written, .logical = stored.logical});
    place.index = static_cast<std::int64_t>(i);
    if (layer.rotation == nullptr) place.shift = 0;
    part->placements.push_back(place);
    part->blocks.push_back(StoredBlockAt(state, part->lane, part->candidates[i], place));
  }
  add_resident(resident.back().logical + 1);
}

void RankCandidates(const RecallPart& part, std::int64_t block_size, std::int64_t wanted,
                    std::vector<WeighedBlock>* ranked) {
  ranked->clear();
  for (std::size_t i = 0; i < part.blocks.size(); ++i) {
    if (!part.placements[i].recalled) continue;
    float mass = 0.0F;
    for (std::int64_t t = 0; t < block_size; ++t)
      mass += part.mass[i * static_cast<std::size_t>(block_size) + static_cast<std::size_t>(t)];
    ranked->push_back({mass,
                       {.slot = part.candidates[static_cast<std::size_t>(part.placements[i].index)],
                        .logical = part.blocks[i].logical}});
  }
  std::partial_sort(ranked->begin(),
                    ranked->begin() + std::min<std::ptrdiff_t>(wanted, std::ssize(*ranked)),
                    ranked->end(), [](const WeighedBlock& left, const WeighedBlock& right) {
                      return left.mass != right.mass ? left.mass > right.mass
                                                     : left.choice.logical > right.choice.logical;
                    });
}

double GainOver(std::span<const RecallChoice> former, std::span<const WeighedBlock> kept,
                std::span<const WeighedBlock> all) {
  const auto was_chosen = [&](const WeighedBlock& block) {
    return std::any_of(former.begin(), former.end(), [&](const RecallChoice& choice) {
      return choice.logical == block.choice.logical;
    });
  };
  double gain = 0.0;
  for (const WeighedBlock& block : kept) gain += static_cast<double>(block.mass);
  for (const WeighedBlock& block : all) {
    if (was_chosen(block)) gain -= static_cast<double>(block.mass);
  }
  // No former choice was better, but sums in another order may say so.
  return std::max(0.0, gain);
}

AttentionBlock StoredBlockAt(const RecallState& state, std::int64_t lane, std::int64_t slot,
                             const BlockPlacement& place) {
  const RecallStore& store = state.store();
  const BlockShape& shape = store.shape(lane);
  return {.data = store.data(lane, slot),
          .shape = &shape,
          .first_head = 0,
          .tokens = shape.block_size,
          .shift_blocks = place.shift / shape.block_size,
          .attention = place.attention,
          .logical = store.slots(lane)[static_cast<std::size_t>(slot)].logical};
}

}  // namespace carousel
