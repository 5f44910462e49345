// SPDX-License-Identifier: Apache-2.0
#include "engine/eviction_planner.h"

#include <fmt/format.h>

#include <algorithm>
#include <limits>

#include "base/check.h"
#include "carousel/error.h"
#include "eviction/budget.h"
#include "eviction/registry.h"

namespace carousel {
namespace {

constexpr std::int64_t kNoLimit = std::int64_t{1} << 50;

}  // namespace

EvictionPlanner::EvictionPlanner(const EngineSettings& settings,
                                 const std::vector<AttentionLayerSpec>& layers)
    : block_size_(settings.config.cache.block_size), limits_(settings.max_cache_size) {
  if (!settings.config.eviction) return;
  const EvictionConfig& eviction = *settings.config.eviction;
  areas_ = {.start_size = eviction.start_size, .recent_size = eviction.recent_size};
  shared_by_heads_ = eviction.budget == Budget::kAdaptive;
  floor_ = eviction.budget_floor;
  for (std::size_t i = 0; i < settings.groups.size(); ++i) {
    // What leaves a window leaves by itself.
    if (settings.window_tokens[i] > 0) limits_[i] = kNoLimit;
    const CacheGroup& group = settings.groups[i];
    const AttentionLayerSpec& layer = layers[static_cast<std::size_t>(group.layer)];
    policies_.push_back(
        MakePolicy({.config = eviction,
                    .shape = settings.shapes[i],
                    .rope = settings.model_rope.layers[static_cast<std::size_t>(group.layer)],
                    .query_heads = layer.query_heads / layer.kv_heads * group.kv_heads,
                    .scale = layer.scale,
                    .group = static_cast<std::int64_t>(i)}));
  }
}

void EvictionPlanner::CopyFrom(const EvictionPlanner& from) {
  for (std::size_t i = 0; i < policies_.size(); ++i) policies_[i] = from.policies_[i]->Clone();
  pinned_ = from.pinned_;
}

std::int64_t EvictionPlanner::CountedQueries(const PolicyStep& step) const {
  if (!evicts()) return 0;
  return std::clamp<std::int64_t>(policies_.front()->CountedQueries(step), 0, step.tokens);
}

namespace {

// What a group's policy sees, of what its view points at.
GroupView Look(const SequenceTables& tables, std::int64_t group, const GroupReader& reader,
               std::span<const std::int64_t> candidates, std::vector<Position>* attention) {
  const auto entries = tables.table(group).entries();
  for (std::int64_t entry = 0; entry < std::ssize(entries); ++entry)
    attention->push_back(tables.AttentionPosition(group, entry));
  return {.entries = entries,
          .candidates = candidates,
          .attention = *attention,
          .next_attention = tables.NextAttentionPosition(group),
          .blocks = &reader};
}

// The scores of a head's candidates, for a budget that heads share.
HeadCandidates Rate(const GroupView& view, Policy* policy) {
  HeadCandidates head;
  head.scores.resize(view.candidates.size());
  policy->Score(view, head.scores);
  for (const std::int64_t entry : view.candidates)
    head.logical.push_back(view.entries[static_cast<std::size_t>(entry)].logical.value);
  return head;
}

}  // namespace

std::int64_t EvictionPlanner::Loss(const SequenceTables& tables, std::int64_t group,
                                   std::int64_t room_tokens) const {
  return BlocksOverLimit(tables.table(group).resident_tokens(),
                         limits_[static_cast<std::size_t>(group)] - room_tokens, block_size_);
}

bool EvictionPlanner::IsOver(const SequenceTables& tables, std::int64_t first_group,
                             std::int64_t groups, std::int64_t room_tokens) const {
  std::int64_t over = 0;  // of all groups together
  std::int64_t most = std::numeric_limits<std::int64_t>::min();
  for (std::int64_t group = first_group; group < first_group + groups; ++group) {
    const std::int64_t loss = Loss(tables, group, room_tokens);
    over += loss;
    most = std::max(most, loss);
  }
  return (shared_by_heads_ ? over : most) > 0;
}

std::vector<Victims> EvictionPlanner::Choose(const SequenceTables& tables, std::int64_t first_group,
                                             std::span<const GroupReader> readers,
                                             std::int64_t room_tokens) {
  std::vector<Victims> victims(readers.size());
  if (!IsOver(tables, first_group, std::ssize(readers), room_tokens)) return victims;
  std::vector<std::int64_t> losses;
  std::int64_t over = 0;  // of all groups together
  for (std::int64_t i = 0; i < std::ssize(readers); ++i) {
    losses.push_back(Loss(tables, first_group + i, room_tokens));
    over += losses.back();
  }

  std::vector<std::vector<Position>> attention(readers.size());
  std::vector<GroupView> views(readers.size());
  for (std::size_t i = 0; i < readers.size(); ++i) {
    const std::int64_t group = first_group + static_cast<std::int64_t>(i);
    victims[i].candidates =
        FindCandidates(tables.table(group).entries(), block_size_, areas_, pinned_);
    views[i] = Look(tables, group, readers[i], victims[i].candidates, &attention[i]);
  }
  if (shared_by_heads_) {
    std::vector<HeadCandidates> heads;
    for (std::size_t i = 0; i < views.size(); ++i)
      heads.push_back(Rate(views[i], policies_[static_cast<std::size_t>(first_group) + i].get()));
    losses = AdaptiveLosses(heads, over, floor_);
  }
  for (std::size_t i = 0; i < views.size(); ++i) {
    const std::int64_t count =
        std::clamp<std::int64_t>(losses[i], 0, std::ssize(victims[i].candidates));
    if (count > 0)
      victims[i].entries =
          policies_[static_cast<std::size_t>(first_group) + i]->Choose(views[i], count);
  }
  return victims;
}

void EvictionPlanner::Pin(std::span<const TokenSpan> spans) {
  if (!evicts()) return;
  std::set<std::int64_t> pinned = pinned_;
  for (const TokenSpan& span : spans) {
    for (std::int64_t block = span.begin / block_size_; block * block_size_ < span.end; ++block) {
      if (block * block_size_ >= areas_.start_size) pinned.insert(block);
    }
  }
  const std::int64_t smallest = *std::min_element(limits_.begin(), limits_.end());
  const std::int64_t room = (smallest - areas_.start_size - areas_.recent_size) / block_size_ - 1;
  if (std::ssize(pinned) > room) {
    throw Error(
        ErrorCode::kInvalidArgument, "pinned",
        fmt::format("{} tokens in whole blocks, and {} may be: of {} tokens in the cache {} "
                    "are the start and recent areas, and a block must be left to evict; "
                    "pin less or raise max_cache_size",
                    std::ssize(pinned) * block_size_, room * block_size_, smallest,
                    areas_.start_size + areas_.recent_size));
  }
  pinned_ = std::move(pinned);
}

void EvictionPlanner::TrimPins(std::int64_t length) {
  pinned_.erase(pinned_.lower_bound((length + block_size_ - 1) / block_size_), pinned_.end());
}

void EvictionPlanner::Clear() {
  pinned_.clear();
  for (const auto& policy : policies_) policy->Clear();
}

}  // namespace carousel
