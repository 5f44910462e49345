// SPDX-License-Identifier: Apache-2.0
#include "engine/sequence.h"

#include <algorithm>
#include <cstdlib>
#include <cstring>
#include <map>
#include <utility>

#include "base/check.h"
#include "base/parallel.h"
#include "eviction/plan.h"

namespace carousel {
namespace {

// The most of what the groups have; at least 0.
template <typename Count>
std::int64_t MostOf(std::int64_t groups, Count count) {
  std::int64_t most = 0;
  for (std::int64_t group = 0; group < groups; ++group) most = std::max(most, count(group));
  return most;
}

}  // namespace

Sequence::Sequence(SharedCache* shared)
    : shared_(shared),
      tables_(shared->groups(), shared->block_size(), shared->settings().rules),
      blocks_(shared, &tables_),
      eviction_(shared->settings(), shared->layer_specs()),
      released_tokens_(static_cast<std::size_t>(shared->groups())),
      promoted_tokens_(released_tokens_.size()),
      use_(released_tokens_.size()),
      forgotten_(released_tokens_.size()) {
  for (std::int64_t group = 0; group < shared->groups(); ++group)
    readers_.emplace_back(&blocks_, &tables_, group);
  if (shared->tier() != nullptr) {
    recall_.emplace(shared->settings(), shared->layer_specs(), shared->tier());
    recall_tasks_.emplace(&*recall_);
  }
}

// The first constructor is through, so that what fails here is cleared by the destructor.
Sequence::Sequence(const Sequence& from) : Sequence(from.shared_) {
  CAROUSEL_CHECK(!from.begin_.has_value());
  tables_ = from.tables_.Fork(shared_->pools());
  blocks_.CopyFrom(from.blocks_);
  eviction_.CopyFrom(from.eviction_);
  if (recall_) recall_->CopyFrom(*from.recall_);
  key_rotation_ = from.key_rotation_;
  history_ = from.history_;
  said_ = from.said_;
  released_tokens_ = from.released_tokens_;
  promoted_tokens_ = from.promoted_tokens_;
  promoted_blocks_ = from.promoted_blocks_;
  counts_ = from.counts_;
  use_ = from.use_;
  gathered_ = from.gathered_;
  forgotten_ = from.forgotten_;
}

Sequence::~Sequence() { tables_.Clear(shared_->pools()); }

// --- Plan ----------------------------------------------------------------------------------------

// The one place where blocks leave.
void Sequence::Release(std::int64_t group, std::span<const std::int64_t> entries) {
  if (entries.empty()) return;
  tables_.Evict(group, entries, shared_->pools().of(group));
  eviction_.Erase(group, entries);
  use_[static_cast<std::size_t>(group)].Erase(entries);
  if (!gathered_.empty()) gathered_[static_cast<std::size_t>(group)].Erase(entries);
}

// Of entries that are about to be evicted.
void Sequence::CountEvicted(std::int64_t group, std::span<const std::int64_t> entries) {
  const Position now = tables_.logical_length();
  const BlockUse& use = use_[static_cast<std::size_t>(group)];
  EvictedBlocks& evicted = shared_->evicted_blocks();
  for (const std::int64_t index : entries) {
    const TableEntry& entry = tables_.table(group).entries()[static_cast<std::size_t>(index)];
    evicted.age.Add(static_cast<double>(now - (entry.logical + entry.tokens)));
    if (const auto last = use.LastUsed(index)) evicted.idle.Add(static_cast<double>(now - *last));
  }
}

// Copies entries that are about to go into the second tier.
void Sequence::Store(std::int64_t group, std::span<const std::int64_t> entries) {
  for (const std::int64_t index : entries) {
    const TableEntry& entry = tables_.table(group).entries()[static_cast<std::size_t>(index)];
    const BlockPlace place = blocks_.Place(group, entry);
    recall_->Store(shared_->group(group), entry, place.data, *place.shape,
                   shared_->rotation(group));
  }
}

// Puts a block of the group's shape back into the cache.
void Sequence::Return(std::int64_t group, const RecalledBlock& block, const std::byte* data) {
  BlockPool& pool = shared_->pools().of(group);
  const std::int64_t entry = tables_.Return(group, block, pool);
  const TableEntry& returned = tables_.table(group).entries()[static_cast<std::size_t>(entry)];
  std::memcpy(pool.data(returned.block), data, shared_->shape(group).bytes());
  eviction_.Insert(group, entry);
  use_[static_cast<std::size_t>(group)].Insert(entry);
  promoted_tokens_[static_cast<std::size_t>(group)] += tables_.block_size();
  ++promoted_blocks_;
  if (!gathered_.empty()) gathered_[static_cast<std::size_t>(group)].Insert(entry);
}

// Takes what the plans of all groups can lack, while nothing has changed: who finds no room comes
// again, and then decides the same. Blocks that others hold as well make no room when they leave.
void Sequence::MakeRoom(std::span<const EvictionPlan> plans) {
  struct Need {
    std::int64_t now = 0;  // blocks, after the groups so far
    std::int64_t most = 0;
  };
  std::map<BlockPool*, Need> needs;
  std::size_t bytes = 0;
  for (std::int64_t group = 0; group < tables_.groups(); ++group) {
    const EvictionPlan& plan = plans[static_cast<std::size_t>(group)];
    BlockPool& pool = shared_->pools().of(group);
    const auto entries = tables_.table(group).entries();
    const std::int64_t freed =
        std::count_if(plan.leaves.begin(), plan.leaves.end(), [&](std::int64_t entry) {
          return !pool.is_shared(entries[static_cast<std::size_t>(entry)].block);
        });
    Need& need = needs[&pool];
    need.now += std::ssize(plan.returns) - freed;
    need.most = std::max(need.most, need.now);
    bytes = std::max(bytes, plan.returns.size() * shared_->shape(group).bytes());
  }
  returning_.Reserve(bytes);
  for (const auto& [pool, need] : needs)
    if (need.most > 0) pool->Reserve(pool->blocks_in_use() + need.most);
}

void Sequence::Apply(std::int64_t group, const EvictionPlan& plan) {
  if (plan.leaves.empty()) return;
  const CacheGroup& heads = shared_->group(group);
  if (!recall_ || !recall_->Recalls(heads)) {
    CountEvicted(group, plan.leaves);
    return Release(group, plan.leaves);
  }
  const BlockShape& shape = shared_->shape(group);
  recall_->ForgetGiven(group, heads);
  // Out of the second tier before who goes comes into it, so that nothing is pushed out for the
  // places that they leave there.
  std::byte* returning = returning_.data();
  for (const RecalledBlock& block : plan.returns) {
    recall_->Read(heads, block.logical, shape, returning);
    recall_->Remove(heads, block.logical);
    returning += shape.bytes();
  }
  Store(group, plan.leaves);
  CountEvicted(group, plan.leaves);
  Release(group, plan.leaves);
  returning = returning_.data();
  for (const RecalledBlock& block : plan.returns) {
    Return(group, block, returning);
    returning += shape.bytes();
  }
}

// Leaves room for `room_tokens` under the limits: decides for all groups, then acts.
void Sequence::EvictLayers(std::int64_t room_tokens) {
  std::vector<EvictionPlan> plans(readers_.size());
  ParallelFor(shared_->layers(), [&](std::int64_t layer) {
    const std::int64_t first = shared_->first_group(layer);
    const auto groups = static_cast<std::size_t>(shared_->first_group(layer + 1) - first);
    const std::vector<Victims> victims = eviction_.Choose(
        tables_, first, std::span(readers_).subspan(static_cast<std::size_t>(first), groups),
        room_tokens);
    for (std::size_t i = 0; i < groups; ++i) {
      if (victims[i].entries.empty()) continue;
      const std::int64_t group = first + static_cast<std::int64_t>(i);
      const CacheGroup& heads = shared_->group(group);
      const EarnedMass earned =
          recall_ && recall_->Recalls(heads) ? recall_->Earned(group, heads) : EarnedMass{};
      plans[static_cast<std::size_t>(group)] = PlanExchange(
          tables_.table(group).entries(), victims[i].candidates, victims[i].entries, earned);
    }
  });
  if (std::all_of(plans.begin(), plans.end(),
                  [](const EvictionPlan& plan) { return plan.leaves.empty(); }))
    return;
  MakeRoom(plans);
  for (std::int64_t group = 0; group < tables_.groups(); ++group)
    Apply(group, plans[static_cast<std::size_t>(group)]);
}

// Entries of the group that no query sees any more, `tokens` further on.
std::vector<std::int64_t> Sequence::BlocksPastWindow(std::int64_t group,
                                                     std::int64_t tokens) const {
  const std::int64_t window = shared_->layer_of(group).sliding_window;
  if (window == 0) return {};
  return PastWindow(tables_.table(group).entries(), tables_.block_size(), window,
                    tables_.logical_length() + tokens);
}

// What a sliding window lets go is no loss, and not counted.
void Sequence::ReleasePastWindows() {
  for (std::int64_t group = 0; group < tables_.groups(); ++group) {
    const std::vector<std::int64_t> past = BlocksPastWindow(group, 0);
    Release(group, past);
    released_tokens_[static_cast<std::size_t>(group)] += std::ssize(past) * tables_.block_size();
  }
}

void Sequence::Evict(const StepRequest& request) {
  ReleasePastWindows();
  const auto& eviction = shared_->settings().config.eviction;
  const bool waits = !eviction_.evicts() ||
                     (request.is_prompt && eviction->prompt_eviction == PromptEviction::kAtEnd);
  // A prompt's chunk may stand above the limit while it is read; decode may not.
  if (!waits) EvictLayers(request.is_prompt ? 0 : 1);
}

// The most of an answer's tokens that one step may append so that each could as well be a step of
// its own: no block would leave between them.
std::int64_t Sequence::LimitTogether(std::int64_t tokens) const {
  tokens = tables_.LimitTogether(tokens);
  for (std::int64_t layer = 0; layer < shared_->layers(); ++layer) {
    const std::int64_t first = shared_->first_group(layer);
    const std::int64_t groups = shared_->first_group(layer + 1) - first;
    while (tokens > 1 && eviction_.evicts() && eviction_.IsOver(tables_, first, groups, tokens))
      --tokens;
    for (std::int64_t group = first; group < first + groups; ++group)
      while (tokens > 1 && !BlocksPastWindow(group, tokens - 1).empty()) --tokens;
  }
  return tokens;
}

// Makes every row of the tables available that the present shifts need.
void Sequence::ExtendRotation() {
  for (std::int64_t group = 0; group < tables_.groups(); ++group) {
    RotationTable* rotation = shared_->rotation(group);
    if (rotation == nullptr) continue;
    const auto entries = std::ssize(tables_.table(group).entries());
    std::int64_t largest = 0;
    for (std::int64_t entry = 0; entry < entries; ++entry) {
      largest = std::max(largest, std::abs(tables_.ShiftOf(group, entry)) / tables_.block_size());
    }
    rotation->Extend(largest);
  }
}

// The group's last entry as it is in a stage, before the tokens of later ones.
TableEntry Sequence::LastEntryOf(std::int64_t group, const StagePlan& stage) const {
  TableEntry last = tables_.table(group).entries().back();
  const std::int64_t length = (stage.first_query_logical + stage.tokens) - last.logical;
  last.tokens = std::min(last.tokens, length);
  return last;
}

void Sequence::PlanGroup(std::int64_t group, StagePlan* stage) {
  GroupPlan& plan = stage->groups[static_cast<std::size_t>(group)];
  const auto entries = tables_.table(group).entries();
  const bool rotates = shared_->rotation(group) != nullptr;
  plan.first_query_attention =
      tables_.NextAttentionPosition(group) + (stage->first_token - plan_.tokens);
  plan.blocks.clear();
  for (std::size_t i = 0; i < entries.size(); ++i) {
    const auto index = static_cast<std::int64_t>(i);
    const TableEntry entry = i + 1 == entries.size() ? LastEntryOf(group, *stage) : entries[i];
    const BlockPlace place = blocks_.Place(group, entry);
    plan.blocks.push_back(
        {.data = place.data,
         .shape = place.shape,
         .tokens = entry.tokens,
         .shift_blocks = rotates ? tables_.ShiftOf(group, index) / tables_.block_size() : 0,
         .attention = tables_.AttentionPosition(group, index),
         .logical = entry.logical});
  }
}

// Appends the step's tokens to the tables and says where all stands.
void Sequence::FillPlan(const StepRequest& request) {
  plan_.first_query_logical = tables_.logical_length();
  blocks_.BeginStep(plan_.first_query_logical);
  plan_.position_ids.resize(static_cast<std::size_t>(plan_.tokens));
  for (std::int64_t i = 0; i < plan_.tokens; ++i) {
    plan_.position_ids[static_cast<std::size_t>(i)] = (tables_.next_written() + i).value;
  }
  tables_.Append(plan_.tokens, shared_->pools());
  const std::int64_t stage_tokens = plan_.tokens / plan_.stage_count;
  plan_.policy_queries =
      eviction_.CountedQueries({.tokens = stage_tokens, .prompt_left = request.prompt_left});
  plan_.counted_queries = std::max<std::int64_t>(gathered_.empty() ? 0 : 1, plan_.policy_queries);
  for (std::int64_t i = 0; i < plan_.stage_count; ++i) {
    StagePlan& stage = plan_.stages[static_cast<std::size_t>(i)];
    stage.first_token = i * stage_tokens;
    stage.tokens = stage_tokens;
    stage.first_query_logical = plan_.first_query_logical + stage.first_token;
    stage.groups.resize(readers_.size());
    for (std::int64_t group = 0; group < tables_.groups(); ++group) PlanGroup(group, &stage);
  }
}

const StepPlan& Sequence::Plan(const StepRequest& request) {
  CAROUSEL_CHECK_GT(request.tokens, 0);
  CAROUSEL_CHECK(!begin_.has_value());
  plan_.is_prompt = request.is_prompt;
  Evict(request);
  plan_.tokens = request.is_prompt ? request.tokens : LimitTogether(request.tokens);
  plan_.stage_count = request.is_prompt ? 1 : plan_.tokens;
  if (std::ssize(plan_.stages) < plan_.stage_count)
    plan_.stages.resize(static_cast<std::size_t>(plan_.stage_count));
  plan_.evicted_tokens = MostOf(tables_.groups(), [&](std::int64_t group) {
    return Forgotten(group) - forgotten_[static_cast<std::size_t>(group)];
  });
  const bool rotates_keys = shared_->settings().rules.rotation == Rotation::kKeys;
  begin_ = tables_.mark();
  try {
    tables_.BeginStep(request.is_prompt ? request.tokens : 1);
    // Keys are rewritten for what BeginStep has settled, and stay so.
    if (rotates_keys) begin_ = tables_.mark();
    ExtendRotation();
    plan_.rotated_keys = rotates_keys ? key_rotation_.Apply(shared_, &tables_, &blocks_) : 0;
    trace_.Begin(shared_->layers(), tables_.groups(), plan_.stage_count);
    FillPlan(request);
  } catch (...) {
    Abandon();
    throw;
  }
  return plan_;
}

// --- Forward -------------------------------------------------------------------------------------

void Sequence::Write(std::int64_t layer, const float* k, const float* v) {
  for (std::int64_t group = shared_->first_group(layer); group < shared_->first_group(layer + 1);
       ++group) {
    blocks_.Write(group, k, v);
  }
}

void Sequence::AddTasks(std::int64_t layer, std::int64_t stage, const float* q, float* out,
                        std::vector<AttentionTask>* tasks) {
  const StagePlan& of = plan_.stages[static_cast<std::size_t>(stage)];
  const AttentionLayerSpec& spec = shared_->layer(layer);
  q += of.first_token * spec.query_heads * spec.key_dim;
  out += of.first_token * spec.query_heads * spec.value_dim;
  for (std::int64_t group = shared_->first_group(layer); group < shared_->first_group(layer + 1);
       ++group) {
    const GroupPlan& plan = of.groups[static_cast<std::size_t>(group)];
    std::vector<float>& mass =
        trace_.token_mass[static_cast<std::size_t>(stage)][static_cast<std::size_t>(group)];
    mass.resize(plan_.counted_queries > 0
                    ? plan.blocks.size() * static_cast<std::size_t>(tables_.block_size())
                    : 0);
    tasks->push_back({.input = {.layer = &spec,
                                .first_kv_head = shared_->group(group).first_kv_head,
                                .kv_heads = shared_->group(group).kv_heads,
                                .block_size = tables_.block_size(),
                                .rotation = shared_->rotation(group),
                                .blocks = plan.blocks,
                                .queries = of.tokens,
                                .first_query_attention = plan.first_query_attention,
                                .first_query_logical = of.first_query_logical,
                                .q = q,
                                .counted_queries = plan_.counted_queries},
                      .output = {.out = out, .token_mass = mass}});
  }
}

RecallLayer Sequence::LayerForRecall(std::int64_t layer, std::int64_t stage,
                                     std::span<const AttentionTask> tasks) {
  const std::int64_t first = shared_->first_group(layer);
  const StagePlan& of = plan_.stages[static_cast<std::size_t>(stage)];
  return {.tables = &tables_,
          .stage = stage,
          .tokens_after = plan_.tokens - of.first_token - of.tokens,
          .first_group = first,
          .groups = std::span(shared_->settings().groups)
                        .subspan(static_cast<std::size_t>(first), tasks.size()),
          .tasks = tasks,
          .rotation = shared_->rotation(first),
          .is_prompt = plan_.is_prompt,
          .weighs = plan_.policy_queries > 0};
}

void Sequence::Trace(std::int64_t layer, const float* q, const float* k, const float* v) {
  const auto index = static_cast<std::size_t>(layer);
  CAROUSEL_CHECK(!trace_.attended[index]);
  trace_.attended[index] = true;
  if (!eviction_.WantsVectors()) return;
  const AttentionLayerSpec& spec = shared_->layer(layer);
  const auto copy = [&](const float* from, std::int64_t row, AlignedBuffer<float>* to) {
    const auto count = static_cast<std::size_t>(plan_.tokens * row);
    to->Reserve(count);
    std::memcpy(to->data(), from, count * sizeof(float));
  };
  LayerVectors& vectors = trace_.vectors[index];
  copy(q, spec.query_heads * spec.key_dim, &vectors.q);
  copy(k, spec.kv_heads * spec.key_dim, &vectors.k);
  copy(v, spec.kv_heads * spec.value_dim, &vectors.v);
}

// --- Commit --------------------------------------------------------------------------------------

// Shows a stage to the group's policy.
void Sequence::Observe(std::int64_t group, std::int64_t stage) {
  const AttentionLayerSpec& layer = shared_->layer_of(group);
  const CacheGroup& heads = shared_->group(group);
  const StagePlan& of = plan_.stages[static_cast<std::size_t>(stage)];
  const auto first = static_cast<std::size_t>(of.first_token);
  Observation seen{.entries = tables_.table(group).entries(),
                   .counted_queries = plan_.policy_queries,
                   .token_mass = {},
                   .tokens = of.tokens,
                   .first_written = Position{plan_.position_ids[first]},
                   .first_logical = of.first_query_logical};
  std::vector<TableEntry> before;  // the tokens of later stages
  if (of.first_query_logical + of.tokens != tables_.logical_length()) {
    before.assign(seen.entries.begin(), seen.entries.end());
    before.back() = LastEntryOf(group, of);
    seen.entries = before;
  }
  if (plan_.policy_queries > 0) {
    seen.token_mass =
        trace_.token_mass[static_cast<std::size_t>(stage)][static_cast<std::size_t>(group)];
    use_[static_cast<std::size_t>(group)].Record(seen.token_mass, tables_.block_size(),
                                                 of.first_query_logical + of.tokens);
  }
  if (eviction_.WantsVectors()) {
    const LayerVectors& vectors = trace_.vectors[static_cast<std::size_t>(heads.layer)];
    const std::int64_t per_kv_head = layer.query_heads / layer.kv_heads;
    seen.q = vectors.q.data() + heads.first_kv_head * per_kv_head * layer.key_dim;
    seen.k = vectors.k.data() + heads.first_kv_head * layer.key_dim;
    seen.v = vectors.v.data() + heads.first_kv_head * layer.value_dim;
    seen.q_stride = layer.query_heads * layer.key_dim;
    seen.k_stride = layer.kv_heads * layer.key_dim;
    seen.v_stride = layer.kv_heads * layer.value_dim;
    seen.q += of.first_token * seen.q_stride;
    seen.k += of.first_token * seen.k_stride;
    seen.v += of.first_token * seen.v_stride;
  }
  eviction_.Observe(group, seen);
}

void Sequence::ObserveStages(std::int64_t group, std::int64_t stages) {
  for (std::int64_t stage = 0; stage < stages; ++stage) Observe(group, stage);
}

void Sequence::AddToHistory(std::span<const TokenId> tokens, std::int64_t said) {
  const std::int64_t first = std::ssize(history_);
  if (said > 0) {
    if (said_.empty() || said_.back().end != first) said_.push_back({.begin = first, .end = first});
    said_.back().end += said;
  }
  history_.insert(history_.end(), tokens.begin(), tokens.end());
}

void Sequence::Commit(std::span<const TokenId> tokens, std::int64_t said) {
  CAROUSEL_CHECK(begin_.has_value());
  const std::int64_t stay = std::ssize(tokens);
  CAROUSEL_CHECK_GT(stay, 0);
  CAROUSEL_CHECK_LE(stay, plan_.tokens);
  CAROUSEL_CHECK(stay == plan_.tokens || !plan_.is_prompt);
  for (const bool attended : trace_.attended) CAROUSEL_CHECK(attended);
  const std::int64_t stages = plan_.is_prompt ? 1 : stay;
  AddToHistory(tokens, said);
  DropFrom(stay);
  for (std::int64_t stage = 0; stage < stages; ++stage) {
    const auto& mass = trace_.token_mass[static_cast<std::size_t>(stage)];
    for (std::size_t group = 0; group < gathered_.size(); ++group)
      gathered_[group].Record(mass[group], plan_.counted_queries);
  }
  if (eviction_.evicts())
    ParallelFor(tables_.groups(), [&](std::int64_t group) { ObserveStages(group, stages); });
  if (recall_) recall_->Commit(stages);
  blocks_.Commit();
  for (std::int64_t group = 0; group < tables_.groups(); ++group)
    forgotten_[static_cast<std::size_t>(group)] = Forgotten(group);
  begin_.reset();
}

// The step's tokens from `stay` on have not been. It has at least one before them.
void Sequence::DropFrom(std::int64_t stay) {
  const std::int64_t dropped = plan_.tokens - stay;
  if (dropped == 0) return;
  SequenceTables::Mark mark = tables_.mark();
  mark.logical_length = mark.logical_length + -dropped;
  mark.next_written = mark.next_written + -dropped;
  tables_.Truncate(mark, shared_->pools());
}

void Sequence::Abandon() noexcept {
  if (!begin_) return;
  tables_.Truncate(*begin_, shared_->pools());
  blocks_.BeginStep(tables_.logical_length());
  if (recall_) recall_->Abandon();
  begin_.reset();
}

void Sequence::Clear() {
  Abandon();
  tables_.Clear(shared_->pools());
  blocks_.BeginStep(tables_.logical_length());
  history_.clear();
  said_.clear();
  counts_ = {};
  std::fill(released_tokens_.begin(), released_tokens_.end(), 0);
  std::fill(promoted_tokens_.begin(), promoted_tokens_.end(), 0);
  std::fill(forgotten_.begin(), forgotten_.end(), 0);
  for (BlockUse& use : use_) use.Clear();
  for (AttentionRecord& record : gathered_) record.Clear();
  if (recall_) recall_->Clear();
  eviction_.Clear();
}

// --- Questions -----------------------------------------------------------------------------------

void Sequence::GatherAttention(bool gather) {
  if (gather == !gathered_.empty()) return;
  gathered_.assign(gather ? readers_.size() : 0, AttentionRecord(tables_.block_size()));
}

std::vector<BlockAttention> Sequence::GatheredAttention(std::int64_t group) const {
  CAROUSEL_CHECK_GE(group, 0);
  CAROUSEL_CHECK_LT(group, tables_.groups());
  if (gathered_.empty()) return {};
  return gathered_[static_cast<std::size_t>(group)].Of(tables_.table(group).entries());
}

std::span<const TokenId> Sequence::LastTokens(std::int64_t most) const {
  return std::span(history_).last(
      static_cast<std::size_t>(std::min<std::int64_t>(most, std::ssize(history_))));
}

std::vector<TokenId> Sequence::LastSaid(std::int64_t most) const {
  std::vector<TokenId> last;  // from the last on
  for (auto span = said_.rbegin(); span != said_.rend(); ++span) {
    for (std::int64_t i = span->end; i > span->begin && std::ssize(last) < most; --i)
      last.push_back(history_[static_cast<std::size_t>(i - 1)]);
  }
  std::reverse(last.begin(), last.end());
  return last;
}

std::vector<TokenId> Sequence::LastOfAnswers() const {
  std::vector<TokenId> last;
  for (const TokenSpan& answer : said_)
    last.push_back(history_[static_cast<std::size_t>(answer.end - 1)]);
  return last;
}

void Sequence::CheckIntegrity(bool is_moved_out, Holdings* holdings) const {
  CAROUSEL_CHECK(!begin_.has_value());
  CAROUSEL_CHECK_EQ(std::ssize(history_), tables_.logical_length().value);
  tables_.CheckIntegrity();
  for (std::int64_t group = 0; group < tables_.groups(); ++group) {
    for (const TableEntry& entry : tables_.table(group).entries()) {
      CAROUSEL_CHECK_EQ(entry.block == BlockId{}, is_moved_out);
      if (!is_moved_out) holdings->Add(shared_->pools().of(group), entry.block);
    }
  }
  if (recall_) recall_->store().AddTo(holdings);
}

std::int64_t Sequence::cache_bytes() const {
  std::int64_t bytes = 0;
  for (std::int64_t group = 0; group < tables_.groups(); ++group) {
    bytes += std::ssize(tables_.table(group).entries()) *
             static_cast<std::int64_t>(shared_->shape(group).bytes());
  }
  return bytes;
}

std::int64_t Sequence::bytes() const {
  const auto history = static_cast<std::int64_t>(history_.size() * sizeof(TokenId));
  return cache_bytes() + blocks_.open_bytes() + history + eviction_.bytes() +
         (recall_ ? recall_->store().bytes() : 0);
}

void Sequence::MoveOut(const std::string& directory, MovedBlocks* to) {
  CAROUSEL_CHECK(!begin_.has_value());
  MovedBlocks moved;
  if (!directory.empty()) moved = MovedBlocks::InFile(directory, cache_bytes());
  if (moved.empty() || !tables_.CopyOut(shared_->pools(), &moved)) {
    moved = MovedBlocks::InMemory(cache_bytes());
    CAROUSEL_CHECK(tables_.CopyOut(shared_->pools(), &moved));
  }
  *to = std::move(moved);
  tables_.MoveOut(shared_->pools());
}

void Sequence::MoveIn(const MovedBlocks& from) {
  CAROUSEL_CHECK_EQ(from.bytes(), cache_bytes());
  tables_.MoveIn(from, shared_->pools());
}

std::int64_t Sequence::resident_tokens() const {
  return MostOf(tables_.groups(),
                [&](std::int64_t group) { return tables_.table(group).resident_tokens(); });
}

std::int64_t Sequence::Forgotten(std::int64_t group) const {
  return tables_.table(group).evicted_tokens() - released_tokens_[static_cast<std::size_t>(group)];
}

std::int64_t Sequence::forgotten_tokens() const {
  return MostOf(tables_.groups(), [&](std::int64_t group) { return Forgotten(group); });
}

std::int64_t Sequence::evicted_tokens() const {
  return MostOf(tables_.groups(), [&](std::int64_t group) {
    return Forgotten(group) + promoted_tokens_[static_cast<std::size_t>(group)];
  });
}

}  // namespace carousel
