// SPDX-License-Identifier: Apache-2.0
#include "engine/sequence_cache.h"

#include <algorithm>
#include <cmath>
#include <cstdlib>
#include <cstring>
#include <numeric>
#include <span>

#include "base/check.h"
#include "base/parallel.h"
#include "cache/block_codec.h"
#include "cache/plane_layout.h"
#include "eviction/plan.h"
#include "rope/rotate.h"

namespace carousel {

SequenceCache::SequenceCache(const EngineSettings& settings,
                             const std::vector<AttentionLayerSpec>& layers)
    : settings_(settings),
      layers_(layers),
      pools_(settings.shapes, settings.limit_bytes),
      tables_(std::ssize(settings.groups), settings.config.cache.block_size, settings.rules),
      eviction_(settings, layers) {
  if (!settings_.reserved_blocks.empty()) pools_.Reserve(settings_.reserved_blocks);
  for (const CacheGroup& group : settings_.groups) {
    const LayerRope& rope = settings_.rope.layers[static_cast<std::size_t>(group.layer)];
    std::int64_t index = -1;
    if (rope.rotates()) {
      const auto same =
          std::find_if(rotation_tables_.begin(), rotation_tables_.end(),
                       [&](const RotationTable& table) { return table.rope() == rope; });
      index = same - rotation_tables_.begin();
      if (same == rotation_tables_.end()) {
        rotation_tables_.emplace_back(rope, settings_.config.cache.block_size);
      }
    }
    rotation_of_group_.push_back(index);
  }
  if (KeysNeedWholeBlocks(settings_.config.cache.key_type)) {
    for (const BlockShape& shape : settings_.shapes) {
      BlockShape open = shape;
      open.key_type = open.value_type = KvType::kF32;
      open_shapes_.push_back(open);
      open_blocks_.emplace_back(open.bytes());
    }
  }
  if (!settings_.recall_lanes.empty()) recall_.emplace(settings_, layers_);
  plan_.groups.resize(settings_.groups.size());
  released_tokens_.assign(settings_.groups.size(), 0);
  first_group_.assign(layers.size() + 1, 0);
  for (const CacheGroup& group : settings_.groups)
    ++first_group_[static_cast<std::size_t>(group.layer) + 1];
  std::partial_sum(first_group_.begin(), first_group_.end(), first_group_.begin());
}

BlockPlace SequenceCache::Place(std::int64_t group, const TableEntry& entry) {
  const auto index = static_cast<std::size_t>(group);
  if (!open_blocks_.empty() && entry.tokens < tables_.block_size()) {
    return {.data = open_blocks_[index].data(), .shape = &open_shapes_[index]};
  }
  return {.data = pools_.of(group).data(entry.block), .shape = &settings_.shapes[index]};
}

RotationTable* SequenceCache::RotationOf(std::int64_t group) {
  const std::int64_t index = rotation_of_group_[static_cast<std::size_t>(group)];
  return index < 0 ? nullptr : &rotation_tables_[static_cast<std::size_t>(index)];
}

// A group's blocks for its policy.
class SequenceCache::GroupReader final : public BlockReader {
 public:
  GroupReader(SequenceCache* cache, std::int64_t group)
      : cache_(cache), group_(group), entries_(cache->tables_.table(group).entries()) {}

  void ReadKeys(std::int64_t entry, std::int64_t head, float* to) const override {
    const BlockPlace place = cache_->Place(group_, entries_[static_cast<std::size_t>(entry)]);
    CodecFor(place.shape->key_type)
        .ReadKeys(place.data + place.shape->key_offset(head), place.shape->block_size,
                  place.shape->key_dim, to);
  }
  void ReadValues(std::int64_t entry, std::int64_t head, float* to) const override {
    const BlockPlace place = cache_->Place(group_, entries_[static_cast<std::size_t>(entry)]);
    CodecFor(place.shape->value_type)
        .ReadValues(place.data + place.shape->value_offset(head), place.shape->block_size,
                    place.shape->value_dim, to);
  }

 private:
  SequenceCache* cache_;
  std::int64_t group_;
  std::span<const TableEntry> entries_;
};

// The one place where blocks leave.
void SequenceCache::Release(std::int64_t group, std::span<const std::int64_t> entries) {
  if (entries.empty()) return;
  tables_.Evict(group, entries, pools_.of(group));
  eviction_.Erase(group, entries);
  if (!gathered_.empty()) gathered_[static_cast<std::size_t>(group)].Erase(entries);
}

void SequenceCache::Remove(std::int64_t group, std::span<const std::int64_t> entries) {
  for (const std::int64_t index : entries) {
    const TableEntry& entry = tables_.table(group).entries()[static_cast<std::size_t>(index)];
    const BlockPlace place = Place(group, entry);
    recall_->Store(group_of(group), entry, place.data, *place.shape, RotationOf(group));
  }
  Release(group, entries);
}

// Removes entries and, for recalled blocks that have earned a place, some more.
void SequenceCache::Exchange(std::int64_t group, std::vector<std::int64_t> entries) {
  if (entries.empty()) return;
  if (!recall_) return Release(group, entries);
  std::vector<std::int64_t> others = eviction_.Candidates(tables_, group);
  std::erase_if(others, [&](std::int64_t entry) {
    return std::binary_search(entries.begin(), entries.end(), entry);
  });
  const std::vector<Recall::Promotion> promotions =
      recall_->Promote(group, group_of(group), tables_.table(group).entries(), others);
  // Out of the second tier before who goes comes into it, so that nothing is pushed out for the
  // places that they leave there. What can lack memory comes first, while nothing has changed.
  const BlockShape& shape = settings_.shapes[static_cast<std::size_t>(group)];
  returning_.Reserve(promotions.size() * shape.bytes());
  for (const Recall::Promotion& promotion : promotions) entries.push_back(promotion.leaves);
  std::sort(entries.begin(), entries.end());
  std::byte* returning = returning_.data();
  for (const Recall::Promotion& promotion : promotions) {
    recall_->Read(group_of(group), promotion.returns.logical, shape, returning);
    recall_->Remove(group_of(group), promotion.returns.logical);
    returning += shape.bytes();
  }
  Remove(group, entries);
  returning = returning_.data();
  for (const Recall::Promotion& promotion : promotions) {
    Return(group, promotion.returns, returning);
    returning += shape.bytes();
  }
}

// Puts a block of the group's shape back into the cache.
void SequenceCache::Return(std::int64_t group, const RecalledBlock& block, const std::byte* data) {
  const std::int64_t entry = tables_.Return(group, block, pools_.of(group));
  const TableEntry& returned = tables_.table(group).entries()[static_cast<std::size_t>(entry)];
  std::memcpy(pools_.of(group).data(returned.block), data,
              settings_.shapes[static_cast<std::size_t>(group)].bytes());
  eviction_.Insert(group, entry);
  ++promoted_blocks_;
  if (!gathered_.empty()) gathered_[static_cast<std::size_t>(group)].Insert(entry);
}

// Leaves room for `room_tokens` under the limits.
void SequenceCache::EvictLayers(std::int64_t room_tokens) {
  std::vector<std::vector<std::vector<std::int64_t>>> victims(layers_.size());
  ParallelFor(std::ssize(layers_), [&](std::int64_t layer) {
    const auto index = static_cast<std::size_t>(layer);
    victims[index] = eviction_.Choose(
        tables_, first_group_[index], first_group_[index + 1] - first_group_[index], room_tokens,
        [this](std::int64_t group) { return std::make_unique<GroupReader>(this, group); });
  });
  std::int64_t group = 0;
  for (const auto& layer : victims) {
    for (const auto& entries : layer) Exchange(group++, entries);
  }
}

// Tokens evicted from the group that lost most. What a sliding window lets go is no loss, and not
// counted.
std::int64_t SequenceCache::Evict(const StepRequest& request) {
  std::vector<std::int64_t> before;
  for (std::int64_t group = 0; group < tables_.groups(); ++group) {
    const std::int64_t window = LayerOf(group).sliding_window;
    if (window > 0) {
      const auto past = PastWindow(tables_.table(group).entries(), tables_.block_size(), window,
                                   tables_.logical_length());
      Release(group, past);
      released_tokens_[static_cast<std::size_t>(group)] += std::ssize(past) * tables_.block_size();
    }
    before.push_back(tables_.table(group).evicted_tokens());
  }
  const bool wait =
      !eviction_.evicts() ||
      (request.is_prompt && settings_.config.eviction->prompt_eviction == PromptEviction::kAtEnd);
  // A prompt's chunk may stand above the limit while it is read; decode may not.
  if (!wait) EvictLayers(request.is_prompt ? 0 : request.tokens);
  std::int64_t most = 0;
  for (std::int64_t group = 0; group < tables_.groups(); ++group) {
    most = std::max(
        most, tables_.table(group).evicted_tokens() - before[static_cast<std::size_t>(group)]);
  }
  return most;
}

namespace {

// Sums of squares of keys before they are coded, and of what coding changes.
struct RewritingError {
  std::int64_t tokens = 0;
  double squares = 0.0;
  double error_squares = 0.0;

  void Add(std::span<const float> keys, std::span<const float> read) {
    for (std::size_t i = 0; i < keys.size(); ++i) {
      const double error = static_cast<double>(read[i]) - static_cast<double>(keys[i]);
      squares += static_cast<double>(keys[i]) * static_cast<double>(keys[i]);
      error_squares += error * error;
    }
  }
};

}  // namespace

// Key rotation: rewrites the keys of every block whose shift is not 0, so that no query has to
// turn. Returns how many tokens' keys were rewritten. Codes that are not f32 are rounded once more
// each time.
std::int64_t SequenceCache::RotateKeys() {
  const std::int64_t block_size = tables_.block_size();
  std::vector<RewritingError> rewritten(static_cast<std::size_t>(tables_.groups()));
  ParallelFor(tables_.groups(), [&](std::int64_t group) {
    const RotationTable* rotation = RotationOf(group);
    if (rotation == nullptr) return;
    const BlockShape& shape = settings_.shapes[static_cast<std::size_t>(group)];
    const auto entries = tables_.table(group).entries();
    const std::int64_t plane = shape.key_dim * block_size;
    AlignedBuffer<float> keys(static_cast<std::size_t>(shape.kv_heads * plane));
    AlignedBuffer<float> read(static_cast<std::size_t>(plane));
    RewritingError& error = rewritten[static_cast<std::size_t>(group)];
    for (std::size_t i = 0; i < entries.size(); ++i) {
      const std::int64_t delta = -tables_.ShiftOf(group, static_cast<std::int64_t>(i)) / block_size;
      if (delta == 0) continue;
      const BlockPlace place = Place(group, entries[i]);
      const BlockCodec& codec = CodecFor(place.shape->key_type);
      for (std::int64_t head = 0; head < shape.kv_heads; ++head) {
        codec.ReadKeys(place.data + place.shape->key_offset(head), block_size, shape.key_dim,
                       keys.data() + head * plane);
      }
      float* const blocks[] = {keys.data()};
      RotateKeyBlocks(*rotation, KeyLayout::kDimensionMajor, shape.kv_heads, shape.key_dim, blocks,
                      {.multiples = {&delta, 1}, .columns = 1});
      for (std::int64_t head = 0; head < shape.kv_heads; ++head) {
        std::byte* to = place.data + place.shape->key_offset(head);
        const float* rotated = keys.data() + head * plane;
        codec.RewriteKeys(to, block_size, shape.key_dim, rotated);
        if (place.shape->key_type == KvType::kF32 || entries[i].tokens < block_size) continue;
        codec.ReadKeys(to, block_size, shape.key_dim, read.data());
        const auto count = static_cast<std::size_t>(plane);
        error.Add({rotated, count}, {read.data(), count});
      }
      error.tokens += entries[i].tokens;
    }
  });
  std::int64_t total = 0;
  for (std::int64_t group = 0; group < tables_.groups(); ++group) {
    tables_.KeysRotated(group);
    const RewritingError& error = rewritten[static_cast<std::size_t>(group)];
    total += error.tokens;
    rewritten_squares_ += error.squares;
    rewritten_error_squares_ += error.error_squares;
  }
  return total;
}

// Makes every row of the tables available that the present shifts need.
void SequenceCache::ExtendRotation() {
  for (std::int64_t group = 0; group < tables_.groups(); ++group) {
    RotationTable* rotation = RotationOf(group);
    if (rotation == nullptr) continue;
    const auto entries = static_cast<std::int64_t>(tables_.table(group).entries().size());
    std::int64_t largest = 0;
    for (std::int64_t entry = 0; entry < entries; ++entry) {
      largest = std::max(largest, std::abs(tables_.ShiftOf(group, entry)) / tables_.block_size());
    }
    rotation->Extend(largest);
  }
}

void SequenceCache::PlanGroup(std::int64_t group) {
  GroupPlan& plan = plan_.groups[static_cast<std::size_t>(group)];
  const auto entries = tables_.table(group).entries();
  const bool rotates = RotationOf(group) != nullptr;
  plan.first_query_attention = tables_.NextAttentionPosition(group) + -plan_.tokens;
  plan.blocks.clear();
  for (std::size_t i = 0; i < entries.size(); ++i) {
    const auto entry = static_cast<std::int64_t>(i);
    const BlockPlace place = Place(group, entries[i]);
    plan.blocks.push_back(
        {.data = place.data,
         .shape = place.shape,
         .tokens = entries[i].tokens,
         .shift_blocks = rotates ? tables_.ShiftOf(group, entry) / tables_.block_size() : 0,
         .attention = tables_.AttentionPosition(group, entry),
         .logical = entries[i].logical});
  }
}

const StepPlan& SequenceCache::Plan(const StepRequest& request) {
  CAROUSEL_CHECK_GT(request.tokens, 0);
  plan_.tokens = request.tokens;
  plan_.evicted_tokens = Evict(request);
  if (recall_) recall_->BeginStep(request.is_prompt);
  tables_.BeginStep(request.tokens);
  ExtendRotation();
  plan_.rotated_keys = settings_.rules.rotation == Rotation::kKeys ? RotateKeys() : 0;
  plan_.first_query_logical = tables_.logical_length();
  plan_.position_ids.resize(static_cast<std::size_t>(request.tokens));
  for (std::int64_t i = 0; i < request.tokens; ++i) {
    plan_.position_ids[static_cast<std::size_t>(i)] = (tables_.next_written() + i).value;
  }
  tables_.Append(request.tokens, pools_);
  plan_.policy_queries =
      eviction_.CountedQueries({.tokens = request.tokens, .prompt_left = request.prompt_left});
  plan_.counted_queries = std::max<std::int64_t>(gathered_.empty() ? 0 : 1, plan_.policy_queries);
  for (std::int64_t group = 0; group < tables_.groups(); ++group) PlanGroup(group);
  return plan_;
}

// The step's part of one entry.
void SequenceCache::WriteEntry(std::int64_t group, const TableEntry& entry, const float* k,
                               const float* v) {
  const std::int64_t first_logical = plan_.first_query_logical.value;
  const std::int64_t slot = std::max<std::int64_t>(0, first_logical - entry.logical.value);
  const std::int64_t tokens = entry.tokens - slot;
  const std::int64_t row = entry.logical.value + slot - first_logical;
  BlockPlace place = Place(group, entry);
  // The rest of a block that was begun before joins what is there, and then the whole is coded.
  const bool seal = !open_blocks_.empty() && slot > 0 && entry.tokens == tables_.block_size();
  if (seal) {
    const auto index = static_cast<std::size_t>(group);
    place = {.data = open_blocks_[index].data(), .shape = &open_shapes_[index]};
  }
  const BlockShape& shape = *place.shape;
  // Rows of k and v hold all of the layer's heads.
  const std::int64_t key_stride = LayerOf(group).kv_heads * shape.key_dim;
  const std::int64_t value_stride = LayerOf(group).kv_heads * shape.value_dim;
  k += row * key_stride + group_of(group).first_kv_head * shape.key_dim;
  v += row * value_stride + group_of(group).first_kv_head * shape.value_dim;
  for (std::int64_t head = 0; head < shape.kv_heads; ++head) {
    CodecFor(shape.key_type)
        .WriteKeys(place.data + shape.key_offset(head), shape.block_size, shape.key_dim, slot,
                   tokens, k + head * shape.key_dim, key_stride);
    CodecFor(shape.value_type)
        .WriteValues(place.data + shape.value_offset(head), shape.block_size, shape.value_dim, slot,
                     tokens, v + head * shape.value_dim, value_stride);
  }
  if (seal) Seal(group, entry);
}

// Codes the group's open block, now full, into the entry's block of the pool.
void SequenceCache::Seal(std::int64_t group, const TableEntry& entry) {
  const auto index = static_cast<std::size_t>(group);
  const BlockShape& open = open_shapes_[index];
  const BlockShape& shape = settings_.shapes[index];
  const std::byte* from = open_blocks_[index].data();
  std::byte* to = pools_.of(group).data(entry.block);
  for (std::int64_t head = 0; head < shape.kv_heads; ++head) {
    CodecFor(shape.key_type)
        .RewriteKeys(to + shape.key_offset(head), shape.block_size, shape.key_dim,
                     reinterpret_cast<const float*>(from + open.key_offset(head)));
    CodecFor(shape.value_type)
        .WriteValues(
            to + shape.value_offset(head), shape.block_size, shape.value_dim, 0, shape.block_size,
            reinterpret_cast<const float*>(from + open.value_offset(head)), shape.value_dim);
  }
}

// The step's keys and values go to the last slots of the table.
void SequenceCache::Write(std::int64_t group, const float* k, const float* v) {
  const auto entries = tables_.table(group).entries();
  const std::int64_t first_logical = plan_.first_query_logical.value;
  std::size_t first = entries.size();
  while (first > 0 && entries[first - 1].logical.value + entries[first - 1].tokens > first_logical)
    --first;
  // The entry that was begun before goes first and alone: it may free the open block for the last.
  if (!open_blocks_.empty()) WriteEntry(group, entries[first++], k, v);
  ParallelFor(static_cast<std::int64_t>(entries.size() - first), [&](std::int64_t i) {
    WriteEntry(group, entries[first + static_cast<std::size_t>(i)], k, v);
  });
}

AttentionInput SequenceCache::TaskInput(std::int64_t group, const float* q) {
  const GroupPlan& plan = plan_.groups[static_cast<std::size_t>(group)];
  return {.layer = &LayerOf(group),
          .first_kv_head = group_of(group).first_kv_head,
          .kv_heads = group_of(group).kv_heads,
          .block_size = tables_.block_size(),
          .rotation = RotationOf(group),
          .blocks = plan.blocks,
          .queries = plan_.tokens,
          .first_query_attention = plan.first_query_attention,
          .first_query_logical = plan_.first_query_logical,
          .q = q,
          .counted_queries = plan_.counted_queries};
}

// The layer's tasks, with what is recalled beside them.
void SequenceCache::RunTasks(std::int64_t first_group, std::int64_t groups) {
  if (!recall_) return attention_.Run(tasks_);
  const Recall::LayerStep step{.tables = &tables_,
                               .first_group = first_group,
                               .groups = std::span(settings_.groups)
                                             .subspan(static_cast<std::size_t>(first_group),
                                                      static_cast<std::size_t>(groups)),
                               .tasks = tasks_,
                               .rotation = RotationOf(first_group),
                               .attention = &attention_,
                               .weighs = plan_.policy_queries > 0};
  const std::span<const AttentionTask> widened = recall_->Widen(step);
  if (widened.empty()) return attention_.Run(tasks_);
  attention_.Run(widened);
  recall_->ShareMass(step);
}

void SequenceCache::Attend(std::int64_t layer, std::int64_t tokens, const float* q, const float* k,
                           const float* v, float* out) {
  // A model that is an embedder's own can be wrong in both.
  CAROUSEL_CHECK_GE(layer, 0);
  CAROUSEL_CHECK_LT(layer, std::ssize(layers_));
  CAROUSEL_CHECK_EQ(tokens, plan_.tokens);
  const std::int64_t first = first_group_[static_cast<std::size_t>(layer)];
  const std::int64_t last = first_group_[static_cast<std::size_t>(layer) + 1];
  tasks_.clear();
  std::size_t mass_tokens = 0;
  for (std::int64_t group = first; group < last; ++group) {
    Write(group, k, v);
    tasks_.push_back({.input = TaskInput(group, q), .output = {.out = out, .token_mass = {}}});
    mass_tokens +=
        tasks_.back().input.blocks.size() * static_cast<std::size_t>(tables_.block_size());
  }
  token_mass_.resize(plan_.counted_queries > 0 ? mass_tokens : 0);
  std::span<float> mass = token_mass_;
  for (AttentionTask& task : tasks_) {
    const std::size_t columns =
        mass.empty() ? 0
                     : task.input.blocks.size() * static_cast<std::size_t>(task.input.block_size);
    task.output.token_mass = mass.first(columns);
    mass = mass.subspan(columns);
  }
  RunTasks(first, last - first);
  for (std::int64_t group = first; group < last && !gathered_.empty(); ++group) {
    gathered_[static_cast<std::size_t>(group)].Record(
        tasks_[static_cast<std::size_t>(group - first)].output.token_mass, plan_.counted_queries);
  }
  if (!eviction_.evicts()) return;
  ParallelFor(last - first, [&](std::int64_t i) {
    Observe(first + i, tasks_[static_cast<std::size_t>(i)].output.token_mass, q, k, v);
  });
}

// Shows the step to the group's policy.
void SequenceCache::Observe(std::int64_t group, std::span<const float> mass, const float* q,
                            const float* k, const float* v) {
  const AttentionLayerSpec& layer = LayerOf(group);
  const CacheGroup& heads = group_of(group);
  Observation seen{.entries = tables_.table(group).entries(),
                   .counted_queries = plan_.policy_queries,
                   .token_mass = plan_.policy_queries > 0 ? mass : std::span<const float>(),
                   .tokens = plan_.tokens,
                   .first_written = Position{plan_.position_ids.front()},
                   .first_logical = plan_.first_query_logical};
  if (eviction_.WantsVectors()) {
    const std::int64_t per_kv_head = layer.query_heads / layer.kv_heads;
    seen.q = q + heads.first_kv_head * per_kv_head * layer.key_dim;
    seen.k = k + heads.first_kv_head * layer.key_dim;
    seen.v = v + heads.first_kv_head * layer.value_dim;
    seen.q_stride = layer.query_heads * layer.key_dim;
    seen.k_stride = layer.kv_heads * layer.key_dim;
    seen.v_stride = layer.kv_heads * layer.value_dim;
  }
  eviction_.Observe(group, seen);
}

void SequenceCache::Clear() {
  tables_.Clear(pools_);
  std::fill(released_tokens_.begin(), released_tokens_.end(), 0);
  for (AttentionRecord& record : gathered_) record.Clear();
  if (recall_) recall_->Clear();
  eviction_.Clear();
}

void SequenceCache::GatherAttention(bool gather) {
  if (gather == !gathered_.empty()) return;
  gathered_.assign(gather ? settings_.groups.size() : 0, AttentionRecord(tables_.block_size()));
}

std::vector<BlockAttention> SequenceCache::GatheredAttention(std::int64_t group) const {
  CAROUSEL_CHECK_GE(group, 0);
  CAROUSEL_CHECK_LT(group, tables_.groups());
  if (gathered_.empty()) return {};
  return gathered_[static_cast<std::size_t>(group)].Of(tables_.table(group).entries());
}

std::int64_t SequenceCache::open_bytes() const {
  std::int64_t bytes = 0;
  for (const BlockShape& shape : open_shapes_) bytes += static_cast<std::int64_t>(shape.bytes());
  return bytes;
}

std::int64_t SequenceCache::resident_tokens() const {
  std::int64_t most = 0;
  for (std::int64_t group = 0; group < tables_.groups(); ++group) {
    most = std::max(most, tables_.table(group).resident_tokens());
  }
  return most;
}

double SequenceCache::requantisation_error() const {
  return rewritten_squares_ > 0.0 ? std::sqrt(rewritten_error_squares_ / rewritten_squares_) : 0.0;
}

std::int64_t SequenceCache::evicted_tokens() const {
  std::int64_t most = 0;
  for (std::int64_t group = 0; group < tables_.groups(); ++group) {
    most = std::max(most, tables_.table(group).evicted_tokens() -
                              released_tokens_[static_cast<std::size_t>(group)]);
  }
  return most;
}

}  // namespace carousel
