// SPDX-License-Identifier: Apache-2.0
#include "golden/naive_judge.h"

#include <gtest/gtest.h>

#include <fmt/format.h>

#include <algorithm>
#include <cmath>
#include <iterator>
#include <map>
#include <memory>
#include <optional>
#include <span>
#include <utility>
#include <vector>

#include "attention/reference.h"
#include "engine/logits.h"
#include "eviction/budget.h"
#include "eviction/registry.h"
#include "golden/naive_recall.h"

namespace carousel::testing {
namespace {

// Some neighbouring KV heads of a layer as a layer of their own.
struct NaiveGroup {
  std::size_t layer = 0;
  std::int64_t first_kv_head = 0;
  AttentionLayerSpec spec;
  std::vector<ReferenceToken> tokens;
  std::vector<ReferenceToken> evicted;  // in stream order
  std::vector<NaiveHabit> habits;       // [kv_heads]
  std::unique_ptr<Policy> policy;
  // What blocks were given by the policy's queries since the group last evicted.
  MassByBlock given;
  MassByBlock given_to_recalled;

  // Row `row` of q, k, v or out, whose heads all have `dim` columns; the group's columns of it.
  template <class Float>
  Float* Columns(Float* rows, std::int64_t row, std::int64_t heads, std::int64_t per_kv_head,
                 std::int64_t dim) const {
    return rows + (row * heads + first_kv_head * per_kv_head) * dim;
  }
};

Grouping GroupingOf(const EvictionConfig& eviction) {
  return eviction.budget == Budget::kAdaptive ? Grouping::kHead : eviction.grouping;
}

std::vector<NaiveGroup> NaiveGroups(const ModelSpec& spec, Grouping grouping) {
  std::vector<NaiveGroup> groups;
  for (std::size_t layer = 0; layer < spec.layers.size(); ++layer) {
    const AttentionLayerSpec& whole = spec.layers[layer];
    const std::int64_t step = grouping == Grouping::kHead ? 1 : whole.kv_heads;
    const std::int64_t queries = whole.query_heads / whole.kv_heads * step;
    for (std::int64_t head = 0; head < whole.kv_heads; head += step) {
      NaiveGroup group{.layer = layer, .first_kv_head = head, .spec = whole};
      group.habits.resize(static_cast<std::size_t>(step));
      group.spec.kv_heads = step;
      group.spec.query_heads = queries;
      if (!whole.alibi_slopes.empty()) {
        const auto first = whole.alibi_slopes.begin() + head / step * queries;
        group.spec.alibi_slopes.assign(first, first + queries);
      }
      groups.push_back(std::move(group));
    }
  }
  return groups;
}

// Gives a policy the kept tokens' keys and values, block by block.
class NaiveReader final : public BlockReader {
 public:
  NaiveReader(const NaiveGroup& group, std::int64_t block_size)
      : group_(group), block_size_(block_size) {}
  void ReadKeys(std::int64_t entry, std::int64_t head, float* to) const override {
    const std::int64_t dim = group_.spec.key_dim;
    ForTokens(entry, [&](const ReferenceToken& token, std::int64_t slot) {
      for (std::int64_t d = 0; d < dim; ++d)
        to[d * block_size_ + slot] =
            static_cast<float>(token.key[static_cast<std::size_t>(head * dim + d)]);
    });
  }
  void ReadValues(std::int64_t entry, std::int64_t head, float* to) const override {
    const std::int64_t dim = group_.spec.value_dim;
    ForTokens(entry, [&](const ReferenceToken& token, std::int64_t slot) {
      for (std::int64_t d = 0; d < dim; ++d)
        to[slot * dim + d] =
            static_cast<float>(token.value[static_cast<std::size_t>(head * dim + d)]);
    });
  }

 private:
  // All blocks but the last are full, so an entry's tokens follow from its number.
  template <typename Use>
  void ForTokens(std::int64_t entry, Use use) const {
    for (std::int64_t slot = 0; slot < block_size_; ++slot) {
      const auto index = static_cast<std::size_t>(entry * block_size_ + slot);
      if (index < group_.tokens.size()) use(group_.tokens[index], slot);
    }
  }

  const NaiveGroup& group_;
  std::int64_t block_size_;
};

// What each layer's groups may hold. Layers with a window have no part in the budget.
std::vector<std::int64_t> Sizes(const ModelSpec& spec, const EngineConfig& config) {
  const auto sharing = std::count_if(spec.layers.begin(), spec.layers.end(),
                                     [](const auto& layer) { return layer.sliding_window == 0; });
  const auto shared = LayerSizes(*config.eviction, sharing, config.cache.block_size);
  std::vector<std::int64_t> sizes;
  std::size_t next = 0;
  for (const AttentionLayerSpec& layer : spec.layers)
    sizes.push_back(layer.sliding_window > 0 ? 0 : shared[next++]);
  return sizes;
}

class NaiveCache final : public AttentionCallback {
 public:
  // Both `spec` and `rope`, which has one entry per layer, outlive the cache.
  NaiveCache(const ModelSpec& spec, const RopeSpec& rope, const EngineConfig& config)
      : spec_(spec),
        rope_(rope),
        config_(config),
        groups_(NaiveGroups(spec, GroupingOf(*config.eviction))),
        sizes_(Sizes(spec, config)) {
    if (config.eviction->positions == PositionPolicy::kCompact ||
        (config.eviction->positions == PositionPolicy::kAuto && config.recall.blocks > 0))
      mode_ = PositionPolicy::kCompact;
    for (std::size_t i = 0; i < groups_.size(); ++i) {
      const BlockShape shape{.block_size = config.cache.block_size,
                             .kv_heads = groups_[i].spec.kv_heads,
                             .key_dim = groups_[i].spec.key_dim,
                             .value_dim = groups_[i].spec.value_dim};
      groups_[i].policy = MakePolicy({.config = *config.eviction,
                                      .shape = shape,
                                      .rope = rope_.layers[groups_[i].layer],
                                      .query_heads = groups_[i].spec.query_heads,
                                      .scale = groups_[i].spec.scale,
                                      .group = static_cast<std::int64_t>(i)});
    }
  }

  // The naive model always gets logical positions: an unlimited double-precision RoPE does not
  // mind.
  void Begin(std::int64_t tokens, bool is_prompt, std::int64_t prompt_left) {
    step_tokens_ = tokens;
    is_prompt_ = is_prompt;
    prompt_left_ = prompt_left;
    for (std::size_t layer = 0; layer < spec_.layers.size(); ++layer) Evict(layer, is_prompt);
    // Query rotation cannot leave kKeep inside a block, so each block has to fit.
    const std::int64_t block_size = config_.cache.block_size;
    const bool by_blocks = config_.eviction->rotation != Rotation::kKeys;
    const std::int64_t end = by_blocks
                                 ? (length_ + tokens + block_size - 1) / block_size * block_size
                                 : length_ + tokens;
    if (mode_ == PositionPolicy::kKeep && config_.eviction->positions == PositionPolicy::kAuto &&
        end > spec_.trained_window) {
      mode_ = PositionPolicy::kCompact;
    }
    length_ += tokens;
  }

  void Attend(std::int64_t layer, std::int64_t tokens, const float* q, const float* k,
              const float* v, float* out) override {
    for (NaiveGroup& group : groups_) {
      if (group.layer == static_cast<std::size_t>(layer)) AttendGroup(group, tokens, q, k, v, out);
    }
  }

  std::int64_t length() const { return length_; }
  const NaiveRecallCounts& recall_counts() const { return counts_; }

 private:
  void AttendGroup(NaiveGroup& group, std::int64_t tokens, const float* q, const float* k,
                   const float* v, float* out) {
    const AttentionLayerSpec& whole = spec_.layers[group.layer];
    const AttentionLayerSpec& spec = group.spec;
    const std::int64_t per_kv_head = whole.query_heads / whole.kv_heads;
    auto& kept = group.tokens;
    for (std::int64_t t = 0; t < tokens; ++t) {
      const Position logical{length_ - tokens + t};
      ReferenceToken token{.written = logical, .attention = {}, .logical = logical};
      const float* key = group.Columns(k, t, whole.kv_heads, 1, spec.key_dim);
      const float* value = group.Columns(v, t, whole.kv_heads, 1, spec.value_dim);
      token.key.assign(key, key + spec.kv_heads * spec.key_dim);
      token.value.assign(value, value + spec.kv_heads * spec.value_dim);
      kept.push_back(std::move(token));
    }
    ReferenceOutput all{
        .out = {},
        .mass = std::vector<double>(static_cast<std::size_t>(tokens) * kept.size(), 0.0)};
    const std::int64_t counted = CountedQueries(group, tokens);
    for (std::int64_t head = 0; head < spec.kv_heads; ++head) {
      std::vector<ReferenceQuery> queries;
      for (std::int64_t t = 0; t < tokens; ++t) {
        const Position logical{length_ - tokens + t};
        ReferenceQuery query{.written = logical, .attention = {}, .logical = logical};
        const float* row = group.Columns(q, t, whole.query_heads, per_kv_head, spec.key_dim) +
                           head * per_kv_head * spec.key_dim;
        query.query.assign(row, row + per_kv_head * spec.key_dim);
        queries.push_back(std::move(query));
      }
      const NaiveRecalled recalled =
          AttendWithRecall(config_, {.mode = mode_, .is_prompt = is_prompt_},
                           {.spec = HeadOf(spec, head),
                            .rope = rope_.layers[group.layer],
                            .kept = HeadOf(kept, spec, head),
                            .evicted = HeadOf(group.evicted, spec, head)},
                           queries, &group.habits[static_cast<std::size_t>(head)], &counts_);
      const ReferenceOutput& result = recalled.output;
      const auto width = static_cast<std::ptrdiff_t>(per_kv_head * spec.value_dim);
      for (std::int64_t t = 0; t < tokens; ++t) {
        const auto from = result.out.begin() + t * width;
        std::copy(
            from, from + width,
            group.Columns(out, t, whole.query_heads, per_kv_head, spec.value_dim) + head * width);
      }
      for (std::size_t i = 0; i < all.mass.size(); ++i) all.mass[i] += result.mass[i];
      for (std::int64_t t = tokens - counted; t < tokens; ++t) {
        for (const auto& [block, mass] : recalled.given[static_cast<std::size_t>(t)])
          group.given_to_recalled[block] += mass;
      }
    }
    Observe(group, all, group.Columns(q, 0, whole.query_heads, per_kv_head, spec.key_dim), tokens);
  }

  static AttentionLayerSpec HeadOf(const AttentionLayerSpec& spec, std::int64_t head) {
    AttentionLayerSpec one = spec;
    one.query_heads = spec.query_heads / spec.kv_heads;
    one.kv_heads = 1;
    if (!spec.alibi_slopes.empty()) {
      const auto first = spec.alibi_slopes.begin() + head * one.query_heads;
      one.alibi_slopes.assign(first, first + one.query_heads);
    }
    return one;
  }

  static std::vector<ReferenceToken> HeadOf(const std::vector<ReferenceToken>& tokens,
                                            const AttentionLayerSpec& spec, std::int64_t head) {
    std::vector<ReferenceToken> of_head = tokens;
    for (ReferenceToken& token : of_head) {
      const auto key = token.key.begin() + head * spec.key_dim;
      const auto value = token.value.begin() + head * spec.value_dim;
      token.key = std::vector<double>(key, key + spec.key_dim);
      token.value = std::vector<double>(value, value + spec.value_dim);
    }
    return of_head;
  }

  std::int64_t BlockOf(const ReferenceToken& token) const {
    return token.logical.value / config_.cache.block_size;
  }

  // The kept tokens as a table of blocks; written positions are stream positions.
  std::vector<TableEntry> Entries(const NaiveGroup& group) const {
    std::vector<TableEntry> entries;
    for (const ReferenceToken& token : group.tokens) {
      const Position first{BlockOf(token) * config_.cache.block_size};
      if (entries.empty() || entries.back().logical != first)
        entries.push_back({.block = {}, .written = first, .logical = first});
      ++entries.back().tokens;
    }
    return entries;
  }

  // Of a step's queries, how many the group's policy wants counted: the last ones.
  std::int64_t CountedQueries(const NaiveGroup& group, std::int64_t tokens) const {
    return std::min(tokens,
                    group.policy->CountedQueries({.tokens = tokens, .prompt_left = prompt_left_}));
  }

  void Observe(NaiveGroup& group, const ReferenceOutput& result, const float* q,
               std::int64_t tokens) {
    const auto entries = Entries(group);
    const std::int64_t counted = CountedQueries(group, tokens);
    std::vector<float> mass;
    if (counted > 0)
      mass.assign(entries.size() * static_cast<std::size_t>(config_.cache.block_size), 0.0F);
    for (std::size_t t = 0; t < group.tokens.size() && counted > 0; ++t) {
      double sum = 0.0;
      for (std::int64_t i = tokens - counted; i < tokens; ++i)
        sum += result.mass[static_cast<std::size_t>(i) * group.tokens.size() + t];
      mass[t] = static_cast<float>(sum);
      group.given[BlockOf(group.tokens[t])] += sum;
    }
    const Position first{length_ - tokens};
    const AttentionLayerSpec& whole = spec_.layers[group.layer];
    group.policy->Observe({.entries = entries,
                           .counted_queries = counted,
                           .token_mass = mass,
                           .tokens = tokens,
                           .first_written = first,
                           .first_logical = first,
                           .q = q,
                           .q_stride = whole.query_heads * whole.key_dim});
  }

  struct Sight {
    std::vector<TableEntry> entries;
    std::vector<std::int64_t> candidates;
    std::vector<Position> attention;
    std::unique_ptr<NaiveReader> reader;
    GroupView view;
  };

  // Full blocks of which no token is pinned, among the first start_size or the last recent_size.
  void Look(const NaiveGroup& group, Sight* sight) const {
    const EvictionConfig& eviction = *config_.eviction;
    sight->entries = Entries(group);
    auto behind = static_cast<std::int64_t>(group.tokens.size());
    for (std::size_t i = 0; i < sight->entries.size(); ++i) {
      const TableEntry& entry = sight->entries[i];
      behind -= entry.tokens;
      sight->attention.push_back(
          mode_ == PositionPolicy::kKeep
              ? entry.logical
              : Position{static_cast<std::int64_t>(i) * config_.cache.block_size});
      bool pinned = false;
      for (std::int64_t t = entry.logical.value; t < entry.logical.value + entry.tokens; ++t)
        pinned = pinned || (t >= pinned_.begin && t < pinned_.end);
      if (entry.tokens == config_.cache.block_size && behind >= eviction.recent_size &&
          entry.logical.value >= eviction.start_size && !pinned)
        sight->candidates.push_back(static_cast<std::int64_t>(i));
    }
    sight->reader = std::make_unique<NaiveReader>(group, config_.cache.block_size);
    sight->view = {.entries = sight->entries,
                   .candidates = sight->candidates,
                   .attention = sight->attention,
                   .next_attention = mode_ == PositionPolicy::kKeep
                                         ? Position{length_}
                                         : Position{static_cast<std::int64_t>(group.tokens.size())},
                   .blocks = sight->reader.get()};
  }

  // How many blocks each head of a layer loses.
  std::vector<std::int64_t> Losses(const std::vector<NaiveGroup*>& heads,
                                   const std::vector<Sight>& sights, std::int64_t limit) const {
    const std::int64_t block_size = config_.cache.block_size;
    std::vector<std::int64_t> losses;
    std::int64_t together = 0;
    for (const NaiveGroup* head : heads) {
      // Block after block, until it would fit; below 0: as many as would still fit.
      std::int64_t over = 0;
      const auto kept = static_cast<std::int64_t>(head->tokens.size());
      while (kept - over * block_size > limit) ++over;
      while (kept - (over - 1) * block_size <= limit) --over;
      losses.push_back(over);
      together += over;
    }
    if (config_.eviction->budget != Budget::kAdaptive) return losses;
    if (together <= 0) return std::vector<std::int64_t>(heads.size(), 0);
    std::vector<HeadCandidates> candidates(heads.size());
    for (std::size_t i = 0; i < heads.size(); ++i) {
      candidates[i].scores.resize(sights[i].candidates.size());
      heads[i]->policy->Score(sights[i].view, candidates[i].scores);
      for (const std::int64_t entry : sights[i].candidates)
        candidates[i].logical.push_back(
            sights[i].entries[static_cast<std::size_t>(entry)].logical.value);
    }
    return AdaptiveLosses(candidates, together, config_.eviction->budget_floor);
  }

  void Evict(std::size_t layer, bool is_prompt) {
    // A layer with a window keeps all that its queries can see; what they cannot costs only memory.
    if (spec_.layers[layer].sliding_window > 0) return;
    if (is_prompt && config_.eviction->prompt_eviction == PromptEviction::kAtEnd) return;
    std::vector<NaiveGroup*> heads;
    for (NaiveGroup& group : groups_)
      if (group.layer == layer) heads.push_back(&group);
    std::vector<Sight> sights(heads.size());
    for (std::size_t i = 0; i < heads.size(); ++i) Look(*heads[i], &sights[i]);
    const auto losses = Losses(heads, sights, sizes_[layer] - (is_prompt ? 0 : step_tokens_));
    for (std::size_t i = 0; i < heads.size(); ++i) {
      const std::int64_t count = std::min(losses[i], std::ssize(sights[i].candidates));
      if (count > 0) Exchange(heads[i], sights[i], heads[i]->policy->Choose(sights[i].view, count));
    }
  }

  // Removes entries. The recalled block that was given most takes the place of the block that was
  // given least of those that may go and do not, if it was given so many times as much; then again.
  void Exchange(NaiveGroup* group, const Sight& sight, std::vector<std::int64_t> gone) {
    std::vector<std::int64_t> returning;
    MassByBlock recalled = std::exchange(group->given_to_recalled, {});
    const MassByBlock given = std::exchange(group->given, {});
    const double factor = config_.recall.promotion;
    while (factor > 0.0 && !recalled.empty()) {
      const auto strongest = std::max_element(
          recalled.begin(), recalled.end(),
          [](const auto& left, const auto& right) { return left.second < right.second; });
      const auto mass_of = [&](std::int64_t entry) {
        return given.at(sight.entries[static_cast<std::size_t>(entry)].logical.value /
                        config_.cache.block_size);
      };
      std::int64_t weakest = -1;
      for (const std::int64_t entry : sight.candidates) {
        const bool stays = std::find(gone.begin(), gone.end(), entry) == gone.end();
        if (stays && (weakest < 0 || mass_of(entry) < mass_of(weakest))) weakest = entry;
      }
      if (weakest < 0 || strongest->second <= factor * mass_of(weakest)) break;
      gone.push_back(weakest);
      returning.push_back(strongest->first);
      recalled.erase(strongest);
    }
    std::sort(gone.begin(), gone.end());
    Remove(group, sight, gone);
    for (const std::int64_t block : returning) Return(group, block);
  }

  // Moves a block's tokens to another list in stream order.
  void Move(std::int64_t block, std::vector<ReferenceToken>* from,
            std::vector<ReferenceToken>* to) const {
    const auto moves = [&](const ReferenceToken& token) { return BlockOf(token) == block; };
    std::copy_if(from->begin(), from->end(), std::back_inserter(*to), moves);
    std::erase_if(*from, moves);
    std::sort(to->begin(), to->end(), [](const ReferenceToken& left, const ReferenceToken& right) {
      return left.logical < right.logical;
    });
  }

  void Return(NaiveGroup* group, std::int64_t block) {
    Move(block, &group->evicted, &group->tokens);
    const auto entries = Entries(*group);
    const auto entry = std::find_if(entries.begin(), entries.end(), [&](const TableEntry& at) {
      return at.logical.value == block * config_.cache.block_size;
    });
    group->policy->Insert(entry - entries.begin());
  }

  void Remove(NaiveGroup* group, const Sight& sight, const std::vector<std::int64_t>& gone) {
    for (const std::int64_t entry : gone) {
      const std::int64_t first = sight.entries[static_cast<std::size_t>(entry)].logical.value;
      Move(first / config_.cache.block_size, &group->tokens, &group->evicted);
    }
    group->policy->Erase(gone);
  }

  const ModelSpec& spec_;
  const RopeSpec& rope_;
  EngineConfig config_;
  PositionPolicy mode_ = PositionPolicy::kKeep;
  std::int64_t length_ = 0;
  std::int64_t step_tokens_ = 0;
  bool is_prompt_ = false;
  std::int64_t prompt_left_ = 0;
  std::vector<NaiveGroup> groups_;
  std::vector<std::int64_t> sizes_;  // [layers]
  TokenSpan pinned_;                 // of the stream
  NaiveRecallCounts counts_;

 public:
  void set_pinned(TokenSpan pinned) { pinned_ = pinned; }
};

}  // namespace

namespace {

// The naive engine beside the real one, step by step as the real one takes them.
class Judge {
 public:
  Judge(SingleSequenceEngine* engine, const NaiveRun& run)
      : engine_(*engine),
        run_(run),
        naive_(run.model->spec(), *run.rope, *run.config),
        vocabulary_(static_cast<std::size_t>(run.model->spec().vocabulary_size)) {
    naive_.set_pinned(run.pinned);
  }

  // Reads and answers. Stops at the first difference, and where recall is not decided.
  void Play(std::span<const TokenId> prompt) {
    Request request{.prompt = {prompt.begin(), prompt.end()},
                    .max_new_tokens = run_.answer_tokens,
                    .ignore_end_tokens = true,
                    .score_prompt = true};
    if (run_.pinned.end > 0 && naive_.length() == 0) request.pinned.push_back(run_.pinned);
    std::vector<TokenId> unread;  // of the prompt, the last answer's last token before it
    if (said_) unread.push_back(*said_);
    unread.insert(unread.end(), prompt.begin(), prompt.end());
    if (said_) before_.clear();
    said_.reset();
    engine_.Submit(std::move(request));
    while (engine_.HasWork()) {
      const StepResult step = engine_.Step();
      const bool is_prompt = !unread.empty();
      const std::vector<TokenId> read =
          is_prompt ? std::vector<TokenId>(unread.begin(), unread.begin() + step.tokens_processed)
                    : std::vector<TokenId>{*said_};
      if (is_prompt) unread.erase(unread.begin(), unread.begin() + step.tokens_processed);
      const auto logits = Forward(read, is_prompt, std::ssize(unread));
      if (!decided()) return;
      if (is_prompt) ExpectScores(read, logits, step);
      before_.assign(logits.end() - static_cast<std::ptrdiff_t>(vocabulary_), logits.end());
      if (step.sampled) ExpectLikeliest(*step.sampled);
      if (::testing::Test::HasFatalFailure()) return;
      judged_tokens_ = naive_.length();
    }
  }

  // Whether it is known what the engine does next.
  bool decided() const { return naive_.recall_counts().undecided == 0; }
  NaiveReport report() const {
    return {.judged_tokens = judged_tokens_, .recall = naive_.recall_counts()};
  }

 private:
  std::span<const float> Forward(const std::vector<TokenId>& read, bool is_prompt,
                                 std::int64_t prompt_left) {
    const std::int64_t begin = naive_.length();
    naive_.Begin(std::ssize(read), is_prompt, prompt_left);
    std::vector<std::int64_t> positions;
    std::vector<std::int64_t> rows;
    for (std::int64_t i = 0; i < std::ssize(read); ++i) {
      positions.push_back(begin + i);
      rows.push_back(i);
    }
    return run_.model->Forward({.token_ids = read, .position_ids = positions, .logit_rows = rows},
                               naive_);
  }

  double LogLikelihood(std::span<const float> row, TokenId token) const {
    return static_cast<double>(row[static_cast<std::size_t>(token)]) - LogSumExp(row);
  }

  void ExpectScores(const std::vector<TokenId>& read, std::span<const float> logits,
                    const StepResult& step) {
    const std::size_t first = before_.empty() ? 1 : 0;
    ASSERT_EQ(step.negative_log_likelihood.size(), read.size() - first);
    for (std::size_t i = first; i < read.size(); ++i) {
      const auto row = i == 0 ? std::span<const float>(before_)
                              : logits.subspan((i - 1) * vocabulary_, vocabulary_);
      ASSERT_NEAR(step.negative_log_likelihood[i - first], -LogLikelihood(row, read[i]),
                  run_.tolerance)
          << "token " << naive_.length() - std::ssize(read) + static_cast<std::int64_t>(i);
    }
  }

  // Greedy, save for ties within the tolerance.
  void ExpectLikeliest(const SampledToken& sampled) {
    said_ = sampled.token;
    const double likelihood = LogLikelihood(before_, sampled.token);
    ASSERT_NEAR(static_cast<double>(sampled.logprob), likelihood, run_.tolerance)
        << "after " << naive_.length() << " tokens";
    const auto best =
        static_cast<TokenId>(std::max_element(before_.begin(), before_.end()) - before_.begin());
    ASSERT_LE(LogLikelihood(before_, best) - likelihood, 2 * run_.tolerance);
  }

  SingleSequenceEngine& engine_;
  const NaiveRun& run_;
  NaiveCache naive_;
  std::size_t vocabulary_;
  std::vector<float> before_;    // the last row that the naive model gave
  std::optional<TokenId> said_;  // sampled, not read yet
  std::int64_t judged_tokens_ = 0;
};

}  // namespace

NaiveReport ExpectSameLikelihoods(SingleSequenceEngine& engine, const NaiveRun& run) {
  Judge judge(&engine, run);
  const auto total = std::ssize(run.tokens);
  for (std::int64_t turn = 0; turn < run.turns && judge.decided(); ++turn) {
    const auto first = static_cast<std::size_t>(total * turn / run.turns);
    const auto last = static_cast<std::size_t>(total * (turn + 1) / run.turns);
    judge.Play(run.tokens.subspan(first, last - first));
    if (::testing::Test::HasFatalFailure()) return judge.report();
  }
  // The last answer's last token was not read.
  if (judge.decided()) {
    EXPECT_EQ(judge.report().judged_tokens,
              total + run.turns * run.answer_tokens - (run.answer_tokens > 0 ? 1 : 0));
  }
  return judge.report();
}

}  // namespace carousel::testing
