// SPDX-License-Identifier: Apache-2.0
#include "golden/naive_judge.h"

#include <gtest/gtest.h>

#include <algorithm>
#include <cmath>
#include <iterator>
#include <map>
#include <utility>
#include <vector>

#include "attention/reference.h"
#include "engine/logits.h"

namespace carousel::testing {
namespace {

// What the naive cache knows of one block of one group.
struct NaiveBlock {
  double mass = 0.0;
  std::int64_t lifetime = 0;
};

// Some neighbouring KV heads of a layer as a layer of their own.
struct NaiveGroup {
  std::size_t layer = 0;
  std::int64_t first_kv_head = 0;
  AttentionLayerSpec spec;
  std::vector<ReferenceToken> tokens;
  std::vector<ReferenceToken> evicted;        // in stream order
  std::map<std::int64_t, NaiveBlock> blocks;  // by logical block

  // Row `row` of q, k, v or out, whose heads all have `dim` columns; the group's columns of it.
  template <class Float>
  Float* Columns(Float* rows, std::int64_t row, std::int64_t heads, std::int64_t per_kv_head,
                 std::int64_t dim) const {
    return rows + (row * heads + first_kv_head * per_kv_head) * dim;
  }
};

std::vector<NaiveGroup> NaiveGroups(const ModelSpec& spec, Grouping grouping) {
  std::vector<NaiveGroup> groups;
  for (std::size_t layer = 0; layer < spec.layers.size(); ++layer) {
    const AttentionLayerSpec& whole = spec.layers[layer];
    const std::int64_t step = grouping == Grouping::kHead ? 1 : whole.kv_heads;
    const std::int64_t queries = whole.query_heads / whole.kv_heads * step;
    for (std::int64_t head = 0; head < whole.kv_heads; head += step) {
      NaiveGroup group{.layer = layer, .first_kv_head = head, .spec = whole};
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

class NaiveCache final : public AttentionCallback {
 public:
  // Both `spec` and `rope`, which has one entry per layer, outlive the cache.
  NaiveCache(const ModelSpec& spec, const RopeSpec& rope, const EngineConfig& config)
      : spec_(spec),
        rope_(rope),
        config_(config),
        groups_(NaiveGroups(spec, config.eviction->grouping)) {
    if (config.eviction->positions == PositionPolicy::kCompact) mode_ = PositionPolicy::kCompact;
  }

  // The naive model always gets logical positions: an unlimited double-precision RoPE does not
  // mind.
  void Begin(std::int64_t tokens, bool is_prompt, std::int64_t prompt_left) {
    step_tokens_ = tokens;
    prompt_left_ = prompt_left;
    for (NaiveGroup& group : groups_) Evict(group, is_prompt);
    if (mode_ == PositionPolicy::kKeep && config_.eviction->positions == PositionPolicy::kAuto &&
        length_ + tokens > spec_.trained_window) {
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
    for (std::int64_t head = 0; head < spec.kv_heads; ++head) {
      const AttentionLayerSpec head_spec = HeadOf(spec, head);
      std::vector<ReferenceQuery> queries;
      for (std::int64_t t = 0; t < tokens; ++t) {
        const Position logical{length_ - tokens + t};
        ReferenceQuery query{.written = logical, .attention = {}, .logical = logical};
        const float* row = group.Columns(q, t, whole.query_heads, per_kv_head, spec.key_dim) +
                           head * per_kv_head * spec.key_dim;
        query.query.assign(row, row + per_kv_head * spec.key_dim);
        queries.push_back(std::move(query));
      }
      const ReferenceOutput result =
          AttendHead(head_spec, rope_.layers[group.layer], HeadOf(kept, spec, head),
                     HeadOf(group.evicted, spec, head), queries);
      const auto width = static_cast<std::ptrdiff_t>(per_kv_head * spec.value_dim);
      for (std::int64_t t = 0; t < tokens; ++t) {
        const auto from = result.out.begin() + t * width;
        std::copy(
            from, from + width,
            group.Columns(out, t, whole.query_heads, per_kv_head, spec.value_dim) + head * width);
      }
      for (std::size_t i = 0; i < all.mass.size(); ++i) all.mass[i] += result.mass[i];
    }
    Vote(group, all);
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

  // Gives each token its place among `tokens`, which are in stream order.
  void Place(std::vector<ReferenceToken>* tokens) const {
    for (std::size_t i = 0; i < tokens->size(); ++i) {
      ReferenceToken& token = (*tokens)[i];
      token.attention =
          mode_ == PositionPolicy::kKeep ? token.logical : Position{static_cast<std::int64_t>(i)};
    }
  }

  // The newest tokens are the queries' own.
  static void Place(const std::vector<ReferenceToken>& tokens,
                    std::vector<ReferenceQuery>* queries) {
    for (std::size_t i = 0; i < queries->size(); ++i)
      (*queries)[i].attention = tokens[tokens.size() - queries->size() + i].attention;
  }

  // One KV head over what it keeps and what it recalls. The mass is that of what it keeps.
  ReferenceOutput AttendHead(const AttentionLayerSpec& spec, const LayerRope& rope,
                             std::vector<ReferenceToken> kept,
                             const std::vector<ReferenceToken>& evicted,
                             std::vector<ReferenceQuery> queries) const {
    const std::vector<std::int64_t> chosen = Choose(spec, rope, kept, evicted, queries);
    const auto is_chosen = [&](const ReferenceToken& token) {
      return std::find(chosen.begin(), chosen.end(), BlockOf(token)) != chosen.end();
    };
    std::copy_if(evicted.begin(), evicted.end(), std::back_inserter(kept), is_chosen);
    std::sort(kept.begin(), kept.end(),
              [](const ReferenceToken& left, const ReferenceToken& right) {
                return left.logical < right.logical;
              });
    Place(&kept);
    Place(kept, &queries);
    ReferenceOutput result = ReferenceAttention(spec, rope, kept, queries);
    std::vector<double> mass;
    for (std::size_t i = 0; i < result.mass.size(); ++i) {
      if (!is_chosen(kept[i % kept.size()])) mass.push_back(result.mass[i]);
    }
    result.mass = std::move(mass);
    return result;
  }

  // The evicted blocks that would get most mass from the last queries, each weighed where it could
  // stand farthest off.
  std::vector<std::int64_t> Choose(const AttentionLayerSpec& spec, const LayerRope& rope,
                                   std::vector<ReferenceToken> kept,
                                   const std::vector<ReferenceToken>& evicted,
                                   std::vector<ReferenceQuery> queries) const {
    if (config_.recall.blocks == 0) return {};
    Place(&kept);
    Place(kept, &queries);
    const auto voters = std::min(std::ssize(queries), config_.recall.queries);
    queries.erase(queries.begin(), queries.end() - voters);
    const std::size_t resident = kept.size();
    for (ReferenceToken token : evicted) {
      token.attention = mode_ == PositionPolicy::kKeep
                            ? token.logical
                            : Position{token.logical.value % config_.cache.block_size};
      kept.push_back(std::move(token));
    }
    const ReferenceOutput result = ReferenceAttention(spec, rope, kept, queries);
    std::map<std::int64_t, double> masses;
    for (std::size_t i = 0; i < result.mass.size(); ++i) {
      const std::size_t token = i % kept.size();
      if (token >= resident) masses[BlockOf(kept[token])] += result.mass[i];
    }
    std::vector<std::int64_t> blocks;
    for (const auto& [block, mass] : masses) blocks.push_back(block);
    std::sort(blocks.begin(), blocks.end(),
              [&](std::int64_t left, std::int64_t right) { return masses[left] > masses[right]; });
    blocks.resize(std::min(blocks.size(), static_cast<std::size_t>(config_.recall.blocks)));
    return blocks;
  }

  std::int64_t BlockOf(const ReferenceToken& token) const {
    return token.logical.value / config_.cache.block_size;
  }

  void Vote(NaiveGroup& group, const ReferenceOutput& result) {
    const EvictionConfig& eviction = *config_.eviction;
    const auto& kept = group.tokens;
    std::vector<double> votes(kept.size(), 0.0);
    std::int64_t counted = 0;
    for (std::int64_t i = 0; i < step_tokens_; ++i) {
      const std::int64_t from_step_end = step_tokens_ - i;  // 1 for the last
      const std::int64_t reach = eviction.prompt_eviction == PromptEviction::kAtEnd
                                     ? from_step_end + prompt_left_
                                     : from_step_end;
      if (eviction.snapkv_window > 0 && reach > eviction.snapkv_window) continue;
      ++counted;
      for (std::size_t t = 0; t < kept.size(); ++t)
        votes[t] += result.mass[static_cast<std::size_t>(i) * kept.size() + t];
    }
    for (std::size_t t = 0; t < kept.size(); ++t) {
      double vote = votes[t];
      const std::int64_t reach = eviction.snapkv_window > 0 ? eviction.pooling_width / 2 : 0;
      for (std::int64_t n = -reach; n <= reach; ++n) {
        const std::int64_t at = static_cast<std::int64_t>(t) + n;
        if (at >= 0 && at < static_cast<std::int64_t>(kept.size()))
          vote = std::max(vote, votes[static_cast<std::size_t>(at)]);
      }
      group.blocks[BlockOf(kept[t])].mass += vote;
    }
    std::map<std::int64_t, bool> present;
    for (const ReferenceToken& token : kept) present[BlockOf(token)] = true;
    for (const auto& [block, unused] : present) group.blocks[block].lifetime += counted;
  }

  void Evict(NaiveGroup& group, bool is_prompt) {
    const EvictionConfig& eviction = *config_.eviction;
    // A layer with a window keeps all that its queries can see; what they cannot costs only memory.
    if (group.spec.sliding_window > 0) return;
    if (is_prompt && eviction.prompt_eviction == PromptEviction::kAtEnd) return;
    const std::int64_t limit = eviction.max_cache_size - (is_prompt ? 0 : step_tokens_);
    auto& kept = group.tokens;
    while (static_cast<std::int64_t>(kept.size()) > limit) {
      std::int64_t worst = -1;
      double lowest = 0.0;
      for (std::size_t t = 0; t + static_cast<std::size_t>(config_.cache.block_size) <= kept.size();
           ++t) {
        const std::int64_t block = BlockOf(kept[t]);
        const bool first_of_block = kept[t].logical.value % config_.cache.block_size == 0;
        const auto behind = static_cast<std::int64_t>(kept.size() - t) - config_.cache.block_size;
        if (!first_of_block || kept[t].logical.value < eviction.start_size ||
            behind < eviction.recent_size)
          continue;
        const NaiveBlock& info = group.blocks[block];
        const double score = info.lifetime == 0 ? INFINITY
                             : eviction.aggregation == Aggregation::kSum
                                 ? info.mass
                                 : info.mass / static_cast<double>(info.lifetime);
        if (worst < 0 || score < lowest) {
          worst = block;
          lowest = score;
        }
      }
      if (worst < 0) return;
      const auto is_worst = [&](const ReferenceToken& token) { return BlockOf(token) == worst; };
      std::copy_if(kept.begin(), kept.end(), std::back_inserter(group.evicted), is_worst);
      std::sort(group.evicted.begin(), group.evicted.end(),
                [](const ReferenceToken& left, const ReferenceToken& right) {
                  return left.logical < right.logical;
                });
      std::erase_if(kept, is_worst);
      group.blocks.erase(worst);
    }
  }

  const ModelSpec& spec_;
  const RopeSpec& rope_;
  EngineConfig config_;
  PositionPolicy mode_ = PositionPolicy::kKeep;
  std::int64_t length_ = 0;
  std::int64_t step_tokens_ = 0;
  std::int64_t prompt_left_ = 0;
  std::vector<NaiveGroup> groups_;
};

}  // namespace

void ExpectSameLikelihoods(Engine& engine, const NaiveRun& run) {
  NaiveCache naive(run.model->spec(), *run.rope, *run.config);
  const auto total = std::ssize(run.tokens);
  const auto vocabulary = static_cast<std::size_t>(run.model->spec().vocabulary_size);
  engine.Submit({.prompt = {run.tokens.begin(), run.tokens.end()}, .score_prompt = true});
  std::vector<float> before;
  while (engine.HasWork()) {
    const StepResult step = engine.Step();
    const std::int64_t begin = naive.length();
    naive.Begin(step.tokens_processed, true, total - begin - step.tokens_processed);
    std::vector<std::int64_t> positions;
    std::vector<std::int64_t> rows;
    for (std::int64_t i = 0; i < step.tokens_processed; ++i) {
      positions.push_back(begin + i);
      rows.push_back(i);
    }
    const auto read = run.tokens.subspan(static_cast<std::size_t>(begin), positions.size());
    const auto logits = run.model->Forward(
        {.token_ids = read, .position_ids = positions, .logit_rows = rows}, naive);
    std::size_t next = 0;
    for (std::size_t i = 0; i < positions.size(); ++i) {
      const auto row = i == 0 ? std::span<const float>(before)
                              : logits.subspan((i - 1) * vocabulary, vocabulary);
      if (row.empty()) continue;
      const double expected =
          LogSumExp(row) - static_cast<double>(row[static_cast<std::size_t>(read[i])]);
      ASSERT_NEAR(step.negative_log_likelihood[next++], expected, run.tolerance)
          << "token " << begin + static_cast<std::int64_t>(i);
    }
    before.assign(logits.end() - static_cast<std::ptrdiff_t>(vocabulary), logits.end());
  }
  EXPECT_EQ(naive.length(), total);
}

}  // namespace carousel::testing
