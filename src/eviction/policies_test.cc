// SPDX-License-Identifier: Apache-2.0
// Each policy against its paper's rule, written out by stream token from everything that happened.
#include <gtest/gtest.h>
#include <rapidcheck/gtest.h>

#include <cmath>
#include <limits>
#include <map>
#include <numeric>

#include "eviction/registry.h"
#include "rope/rotate.h"
#include "testing/policy_world.h"

namespace carousel {
namespace {

using Scores = std::vector<double>;  // one per candidate

std::unique_ptr<Policy> Make(const PolicyWorld& world, const EvictionConfig& config,
                             const LayerRope& rope = {}) {
  const BlockShape shape = world.block_shape();
  return MakePolicy({.config = config,
                     .shape = shape,
                     .rope = rope,
                     .query_heads = world.shape().query_heads,
                     .scale = 0.25F,
                     .group = 0});
}

// Runs a policy over random steps and evictions; `check` sees each choice before it is carried out.
template <typename Check>
void RandomRun(PolicyWorld* world, Policy* policy, Check check) {
  std::int64_t prompt = world->Pick(20, 200);
  for (int step = 0; step < 14; ++step) {
    const std::int64_t tokens = prompt > 0 ? std::min<std::int64_t>(prompt, world->Pick(1, 40)) : 1;
    prompt -= std::min(prompt, tokens);
    world->Step(tokens, prompt, policy);
    const auto candidates = world->Candidates(8, world->Pick(1, 3));
    if (candidates.empty() || world->Pick(0, 2) == 0) continue;
    const std::int64_t count = world->Pick(1, static_cast<std::int64_t>(candidates.size()));
    const GroupView view = world->View(candidates);
    const std::vector<std::int64_t> gone = policy->Choose(view, count);
    RC_ASSERT(static_cast<std::int64_t>(gone.size()) == count);
    RC_ASSERT(std::is_sorted(gone.begin(), gone.end()));
    RC_ASSERT(std::includes(candidates.begin(), candidates.end(), gone.begin(), gone.end()));
    check(view, gone);
    world->Evict(gone, policy);
  }
}

// The lowest of `scores` go, of equal ones the older: by definition, one at a time.
std::vector<std::int64_t> LowestByDefinition(const GroupView& view, const Scores& scores,
                                             std::size_t count) {
  std::vector<bool> gone(scores.size(), false);
  for (std::size_t n = 0; n < count; ++n) {
    std::size_t worst = scores.size();
    for (std::size_t i = 0; i < scores.size(); ++i) {
      if (!gone[i] && (worst == scores.size() || scores[i] < scores[worst])) worst = i;
    }
    gone[worst] = true;
  }
  std::vector<std::int64_t> entries;
  for (std::size_t i = 0; i < scores.size(); ++i)
    if (gone[i]) entries.push_back(view.candidates[i]);
  return entries;
}

// A step's vote for one token: the largest mass at most width / 2 kept tokens away.
double Vote(const WorldStep& step, std::size_t at, std::int64_t width) {
  double most = 0.0;
  for (std::size_t i = 0; i < step.mass.size(); ++i) {
    const auto away = static_cast<std::int64_t>(i > at ? i - at : at - i);
    if (away <= width / 2) most = std::max(most, static_cast<double>(step.mass[i]));
  }
  return most;
}

// Accumulated votes of a token block by its first stream token, and how many queries it lived
// through, over the steps [first, end).
struct Heard {
  double mass = 0.0;
  std::int64_t lifetime = 0;
};
Heard Gather(const PolicyWorld& world, std::int64_t logical, std::size_t first,
             std::int64_t width) {
  Heard heard;
  for (std::size_t s = first; s < world.steps().size(); ++s) {
    const WorldStep& step = world.steps()[s];
    if (step.counted == 0) continue;
    bool there = false;
    for (std::size_t i = 0; i < step.tokens.size(); ++i) {
      if (step.tokens[i] / world.shape().block_size != logical / world.shape().block_size) continue;
      there = true;
      heard.mass += Vote(step, i, width);
    }
    if (there) heard.lifetime += step.counted;
  }
  return heard;
}

Scores GatherScores(const PolicyWorld& world, const GroupView& view, Aggregation aggregation,
                    std::size_t first, std::int64_t width) {
  Scores scores;
  for (const std::int64_t entry : view.candidates) {
    const Heard heard =
        Gather(world, view.entries[static_cast<std::size_t>(entry)].logical.value, first, width);
    scores.push_back(heard.lifetime == 0 ? INFINITY
                     : aggregation == Aggregation::kSum
                         ? heard.mass
                         : heard.mass / static_cast<double>(heard.lifetime));
  }
  return scores;
}

EvictionConfig RandomConfig(PolicyWorld* world, const std::string& policy) {
  EvictionConfig config;
  config.policy = policy;
  config.aggregation = world->Pick(0, 1) == 0 ? Aggregation::kSum : Aggregation::kNormSum;
  config.snapkv_window = world->Pick(0, 9);
  config.pooling_width = 1 + 2 * world->Pick(0, 4);
  config.prompt_eviction =
      world->Pick(0, 3) == 0 ? PromptEviction::kAtEnd : PromptEviction::kCapped;
  config.policy_seed = static_cast<std::uint64_t>(world->Pick(0, 1000));
  return config;
}

RC_GTEST_PROP(SnapKv, EqualsTheRule, (std::uint64_t seed)) {
  PolicyWorld world({}, seed);
  const EvictionConfig config = RandomConfig(&world, "snapkv");
  const auto policy = Make(world, config);
  RandomRun(&world, policy.get(), [&](const GroupView& view, const auto& gone) {
    const Scores scores = GatherScores(world, view, config.aggregation, 0,
                                       config.snapkv_window == 0 ? 1 : config.pooling_width);
    RC_ASSERT(gone == LowestByDefinition(view, scores, gone.size()));
  });
}

RC_GTEST_PROP(H2o, EqualsTheRule, (std::uint64_t seed)) {
  PolicyWorld world({}, seed);
  const EvictionConfig config = RandomConfig(&world, "h2o");
  const auto policy = Make(world, config);
  RandomRun(&world, policy.get(), [&](const GroupView& view, const auto& gone) {
    for (const WorldStep& step : world.steps()) RC_ASSERT(step.counted > 0);
    const Scores scores = GatherScores(world, view, config.aggregation, 0, 1);
    RC_ASSERT(gone == LowestByDefinition(view, scores, gone.size()));
  });
}

RC_GTEST_PROP(Tova, EqualsTheRule, (std::uint64_t seed)) {
  PolicyWorld world({}, seed);
  const EvictionConfig config = RandomConfig(&world, "tova");
  const auto policy = Make(world, config);
  RandomRun(&world, policy.get(), [&](const GroupView& view, const auto& gone) {
    std::size_t last = world.steps().size();
    for (std::size_t s = 0; s < world.steps().size(); ++s)
      if (world.steps()[s].counted > 0) last = s;
    const Scores scores = GatherScores(world, view, Aggregation::kSum, last, 1);
    RC_ASSERT(gone == LowestByDefinition(view, scores, gone.size()));
  });
}

TEST(Tova, CountsTheLastQueryOnly) {
  const PolicyWorld world({}, 1);
  const auto capped = Make(world, {.policy = "tova"});
  EXPECT_EQ(capped->CountedQueries({.tokens = 20, .prompt_left = 5}), 1);
  const auto at_end = Make(world, {.policy = "tova", .prompt_eviction = PromptEviction::kAtEnd});
  EXPECT_EQ(at_end->CountedQueries({.tokens = 20, .prompt_left = 5}), 0);
  EXPECT_EQ(at_end->CountedQueries({.tokens = 20, .prompt_left = 0}), 1);
}

RC_GTEST_PROP(Window, TheOldestGo, (std::uint64_t seed)) {
  PolicyWorld world({}, seed);
  const auto policy = Make(world, {.policy = "window"});
  RandomRun(&world, policy.get(), [&](const GroupView& view, const auto& gone) {
    RC_ASSERT(std::equal(gone.begin(), gone.end(), view.candidates.begin()));
  });
}

double Dot(std::span<const float> a, std::span<const float> b) {
  return std::inner_product(
      a.begin(), a.end(), b.begin(), 0.0, std::plus<>(),
      [](float x, float y) { return static_cast<double>(x) * static_cast<double>(y); });
}

std::span<const float> HeadKey(const PolicyWorld& world, std::int64_t token, std::int64_t head) {
  return std::span(world.key(token))
      .subspan(static_cast<std::size_t>(head * world.shape().key_dim),
               static_cast<std::size_t>(world.shape().key_dim));
}

LayerRope FastRope(const PolicyWorld& world) {
  return {.pairing = Pairing::kHalves,
          .rotated_dims = world.shape().key_dim,
          .frequencies = PlainFrequencies(100.0, world.shape().key_dim)};
}

// A head's key where its block, an entry of the view, stands.
std::vector<double> PlacedKey(const PolicyWorld& world, const GroupView& view, std::int64_t token,
                              std::int64_t head) {
  const auto written = HeadKey(world, token, head);
  const std::vector<double> from(written.begin(), written.end());
  std::vector<double> placed(from.size());
  for (std::size_t i = 0; i < view.entries.size(); ++i) {
    const TableEntry& entry = view.entries[i];
    if (token < entry.logical.value || token >= entry.logical.value + entry.tokens) continue;
    RotateVectorReference(FastRope(world), static_cast<double>(view.attention[i] - entry.written),
                          world.shape().key_dim, from.data(), placed.data());
  }
  return placed;
}

// The candidates' stream tokens, block by block.
std::vector<std::int64_t> TokensOf(const PolicyWorld& world, const GroupView& view) {
  std::vector<std::int64_t> tokens;
  for (const std::int64_t entry : view.candidates) {
    for (std::int64_t slot = 0; slot < world.shape().block_size; ++slot)
      tokens.push_back(view.entries[static_cast<std::size_t>(entry)].logical.value + slot);
  }
  return tokens;
}

// Who goes has no higher score than who stays, but for rounding.
void CheckLowest(const GroupView& view, const Scores& scores, const std::vector<std::int64_t>& gone,
                 double tolerance) {
  double highest_gone = -INFINITY;
  double lowest_kept = INFINITY;
  for (std::size_t i = 0; i < scores.size(); ++i) {
    if (std::binary_search(gone.begin(), gone.end(), view.candidates[i]))
      highest_gone = std::max(highest_gone, scores[i]);
    else
      lowest_kept = std::min(lowest_kept, scores[i]);
  }
  RC_ASSERT(highest_gone <= lowest_kept + tolerance);
}

RC_GTEST_PROP(KeyNorm, LowNormsStay, (std::uint64_t seed)) {
  PolicyWorld world({}, seed);
  const auto policy = Make(world, {.policy = "keynorm"});
  RandomRun(&world, policy.get(), [&](const GroupView& view, const auto& gone) {
    Scores scores(view.candidates.size(), 0.0);
    const auto tokens = TokensOf(world, view);
    for (std::size_t i = 0; i < tokens.size(); ++i) {
      for (std::int64_t head = 0; head < world.shape().kv_heads; ++head) {
        const auto key = HeadKey(world, tokens[i], head);
        scores[i / static_cast<std::size_t>(world.shape().block_size)] -= std::sqrt(Dot(key, key));
      }
    }
    CheckLowest(view, scores, gone, 1e-4);
  });
}

RC_GTEST_PROP(KeyDiff, KeysUnlikeTheMeanStay, (std::uint64_t seed)) {
  PolicyWorld world({}, seed);
  const auto policy = Make(world, {.policy = "keydiff"}, FastRope(world));
  RandomRun(&world, policy.get(), [&](const GroupView& view, const auto& gone) {
    Scores scores(view.candidates.size(), 0.0);
    const auto tokens = TokensOf(world, view);
    for (std::int64_t head = 0; head < world.shape().kv_heads; ++head) {
      std::vector<double> mean(static_cast<std::size_t>(world.shape().key_dim), 0.0);
      for (const std::int64_t token : tokens) {
        const auto key = PlacedKey(world, view, token, head);
        for (std::size_t d = 0; d < mean.size(); ++d)
          mean[d] +=
              key[d] / std::sqrt(std::inner_product(key.begin(), key.end(), key.begin(), 0.0));
      }
      const double norm =
          std::sqrt(std::inner_product(mean.begin(), mean.end(), mean.begin(), 0.0));
      for (std::size_t i = 0; i < tokens.size(); ++i) {
        const auto key = PlacedKey(world, view, tokens[i], head);
        const double size = std::sqrt(std::inner_product(key.begin(), key.end(), key.begin(), 0.0));
        double cosine = 0.0;
        for (std::size_t d = 0; d < mean.size(); ++d) cosine += key[d] * mean[d] / size / norm;
        scores[i / static_cast<std::size_t>(world.shape().block_size)] -= cosine;
      }
    }
    CheckLowest(view, scores, gone, 1e-3);
  });
}

// Adaptive R-KV's attention score of each candidate: the last `window` steps that counted, averaged
// by token, pooled, summed.
Scores RkvAttention(const PolicyWorld& world, const GroupView& view, const EvictionConfig& config) {
  std::vector<const WorldStep*> steps;
  for (const WorldStep& step : world.steps())
    if (step.counted > 0) steps.push_back(&step);
  const auto window = static_cast<std::size_t>(config.rkv_window);
  if (steps.size() > window) steps.erase(steps.begin(), steps.end() - config.rkv_window);
  WorldStep mean;  // over what is there now
  std::map<std::int64_t, bool> heard;
  for (const TableEntry& entry : view.entries) {
    for (std::int64_t slot = 0; slot < entry.tokens; ++slot) {
      const std::int64_t token = entry.logical.value + slot;
      double sum = 0.0;
      for (const WorldStep* step : steps) {
        const auto at = std::find(step->tokens.begin(), step->tokens.end(), token);
        if (at == step->tokens.end()) continue;
        heard[entry.logical.value] = true;
        sum += static_cast<double>(step->mass[static_cast<std::size_t>(at - step->tokens.begin())]);
      }
      mean.mass.push_back(static_cast<float>(sum / static_cast<double>(steps.size())));
    }
  }
  Scores scores;
  for (const std::int64_t entry : view.candidates) {
    double score = 0.0;
    for (std::int64_t slot = 0; slot < world.shape().block_size; ++slot)
      score += Vote(mean, static_cast<std::size_t>(entry * world.shape().block_size + slot),
                    config.pooling_width);
    scores.push_back(heard[view.entries[static_cast<std::size_t>(entry)].logical.value] ? score
                                                                                        : INFINITY);
  }
  return scores;
}

// Minus the similarity of a block's keys to those of the blocks in `rest`.
double RkvDiversity(const PolicyWorld& world, const GroupView& view, std::int64_t block,
                    const std::vector<std::int64_t>& rest) {
  const auto tokens = TokensOf(world, view);
  const std::int64_t first = view.entries[static_cast<std::size_t>(block)].logical.value;
  double diversity = 0.0;
  for (std::int64_t head = 0; head < world.shape().kv_heads; ++head) {
    for (std::int64_t own = first; own < first + world.shape().block_size; ++own) {
      const auto dot = [](const std::vector<double>& a, const std::vector<double>& b) {
        return std::inner_product(a.begin(), a.end(), b.begin(), 0.0);
      };
      const auto key = PlacedKey(world, view, own, head);
      std::vector<double> cosine;
      for (const std::int64_t token : tokens) {
        const auto other = PlacedKey(world, view, token, head);
        cosine.push_back(
            token == own ? 0.0 : dot(key, other) / std::sqrt(dot(key, key) * dot(other, other)));
      }
      const double mean =
          std::accumulate(cosine.begin(), cosine.end(), 0.0) / static_cast<double>(cosine.size());
      for (std::size_t i = 0; i < tokens.size(); ++i) {
        const std::int64_t entry =
            view.candidates[i / static_cast<std::size_t>(world.shape().block_size)];
        if (cosine[i] >= mean && std::find(rest.begin(), rest.end(), entry) != rest.end())
          diversity -= cosine[i];
      }
    }
  }
  return diversity;
}

RC_GTEST_PROP(AdaptiveRkv, EqualsTheRule, (std::uint64_t seed)) {
  PolicyWorld world({}, seed);
  EvictionConfig config = RandomConfig(&world, "adaptive_rkv");
  config.rkv_window = world.Pick(1, 5);
  config.rkv_attention_mass = static_cast<double>(world.Pick(0, 10)) / 10;
  const auto policy = Make(world, config, FastRope(world));
  RandomRun(&world, policy.get(), [&](const GroupView& view, const auto& gone) {
    const Scores scores = RkvAttention(world, view, config);
    // One after the other the highest score is saved, until the mass or the room is reached.
    double total = 0.0;
    for (const double score : scores) total += std::isinf(score) ? 0.0 : score;
    std::vector<std::int64_t> rest(view.candidates.begin(), view.candidates.end());
    double mass = 0.0;
    double least_saved = INFINITY;
    bool near_tie = false;
    while (rest.size() > gone.size()) {
      std::size_t best = scores.size();
      for (std::size_t i = 0; i < scores.size(); ++i) {
        const bool open = std::find(rest.begin(), rest.end(), view.candidates[i]) != rest.end();
        if (open && (best == scores.size() || scores[i] > scores[best])) best = i;
      }
      const bool unheard = std::isinf(scores[best]);
      if (!unheard && mass >= config.rkv_attention_mass * total - 1e-5) {
        near_tie = least_saved - scores[best] < 1e-4;
        break;
      }
      if (!unheard) mass += scores[best];
      least_saved = scores[best];
      std::erase(rest, view.candidates[best]);
    }
    // Averages are rounded to float: near the threshold either way is right.
    if (std::abs(mass - config.rkv_attention_mass * total) < 1e-3 && mass > 0.0) return;
    // So is either of two blocks that attention holds equal, at the edge of what it saves.
    if (near_tie) return;
    Scores diversity;
    for (const std::int64_t entry : view.candidates) {
      const bool saved = std::find(rest.begin(), rest.end(), entry) == rest.end();
      diversity.push_back(saved ? INFINITY : RkvDiversity(world, view, entry, rest));
    }
    if (rest.size() > gone.size()) CheckLowest(view, diversity, gone, 1e-2);
    if (rest.size() == gone.size() && scores.size() > gone.size())
      CheckLowest(view, scores, gone, 1e-4);
  });
}

RC_GTEST_PROP(KvCrush, EqualsTheRule, (std::uint64_t seed)) {
  PolicyWorld world({}, seed);
  EvictionConfig config = RandomConfig(&world, "h2o");
  config.kvcrush_budget = world.Pick(1, 4);
  config.kvcrush_anchor = static_cast<KvCrushAnchor>(world.Pick(1, 4));  // all but random
  const auto policy = Make(world, config);
  const auto size = static_cast<std::size_t>(world.shape().block_size);
  RandomRun(&world, policy.get(), [&](const GroupView& view, const auto& gone) {
    const Scores scores = GatherScores(world, view, config.aggregation, 0, 1);
    const std::size_t more = std::min(view.candidates.size() - gone.size(),
                                      static_cast<std::size_t>(config.kvcrush_budget));
    std::vector<std::int64_t> dropped = LowestByDefinition(view, scores, gone.size() + more);
    // Token scores: as the block's, of one token.
    Scores tokens;
    for (const std::int64_t token : TokensOf(world, view)) {
      double mass = 0.0;
      for (const WorldStep& step : world.steps()) {
        const auto at = std::find(step.tokens.begin(), step.tokens.end(), token);
        if (at != step.tokens.end())
          mass +=
              static_cast<double>(step.mass[static_cast<std::size_t>(at - step.tokens.begin())]);
      }
      const std::int64_t lifetime = Gather(world, token, 0, 1).lifetime;
      tokens.push_back(
          config.aggregation == Aggregation::kSum ? mass : mass / static_cast<double>(lifetime));
    }
    // A token is important when fewer than half of all have a higher score or the same and are
    // older.
    const auto important = [&](std::size_t t) {
      std::size_t before = 0;
      for (std::size_t o = 0; o < tokens.size(); ++o)
        before += tokens[o] > tokens[t] || (tokens[o] == tokens[t] && o < t) ? 1 : 0;
      return before < tokens.size() / 2;
    };
    const auto anchor = [&](std::size_t slot) {
      if (config.kvcrush_anchor == KvCrushAnchor::kZeros) return false;
      if (config.kvcrush_anchor == KvCrushAnchor::kOnes) return true;
      if (config.kvcrush_anchor == KvCrushAnchor::kAlternating) return slot % 2 == 1;
      std::size_t ones = 0;
      for (std::size_t i = 0; i < view.candidates.size(); ++i)
        ones += important(i * size + slot) ? 1 : 0;
      return static_cast<double>(ones) > 0.5 * static_cast<double>(view.candidates.size());
    };
    std::vector<std::pair<std::size_t, std::int64_t>> order;
    for (std::size_t i = 0; i < view.candidates.size(); ++i) {
      if (!std::binary_search(dropped.begin(), dropped.end(), view.candidates[i])) continue;
      std::size_t distance = 0;
      for (std::size_t slot = 0; slot < size; ++slot)
        distance += important(i * size + slot) != anchor(slot) ? 1 : 0;
      order.emplace_back(distance, view.candidates[i]);
    }
    std::sort(order.begin(), order.end());
    for (std::size_t i = 0; i < more; ++i)
      std::erase(dropped, order[i * (order.size() / more)].second);
    RC_ASSERT(gone == dropped);
  });
}

RC_GTEST_PROP(ExpectedAttention, EqualsTheRule, (std::uint64_t seed)) {
  PolicyWorld world({.key_dim = 8}, seed);
  const bool neighbours = world.Pick(0, 1) == 1;
  const LayerRope rope{.pairing = neighbours ? Pairing::kNeighbours : Pairing::kHalves,
                       .first_dim = 2,
                       .rotated_dims = 6,
                       .frequencies = PlainFrequencies(100.0, 6)};
  const EvictionConfig config{.policy = "expected_attention",
                              .expected_positions = world.Pick(1, 20)};
  const auto policy = Make(world, config, rope);
  const std::int64_t heads = world.shape().query_heads / world.shape().kv_heads;
  const auto dim = static_cast<std::size_t>(world.shape().key_dim);
  const double scale = 0.25;
  RandomRun(&world, policy.get(), [&](const GroupView& view, const auto& /*gone*/) {
    Scores expected(view.candidates.size(), 0.0);
    for (std::int64_t h = 0; h < world.shape().query_heads; ++h) {
      // Queries before RoPE, of the samples that the policy takes.
      std::vector<std::vector<double>> queries;
      const std::int64_t length =
          world.steps().empty() ? 0 : world.steps().back().tokens.back() + 1;
      for (std::int64_t token = 7; token < length; token += 8) {
        std::vector<double> q(dim);
        for (std::size_t d = 0; d < dim; ++d)
          q[d] = static_cast<double>(world.query(token)[static_cast<std::size_t>(h) * dim + d]);
        std::vector<double> back(dim);
        RotateVectorReference(rope, static_cast<double>(-token), world.shape().key_dim, q.data(),
                              back.data());
        queries.push_back(back);
      }
      // A applied to a vector: the mean over the positions to come, seen from where the key stands.
      const auto averaged = [&](const std::vector<double>& q, std::int64_t distance) {
        std::vector<double> sum(dim, 0.0);
        std::vector<double> turned(dim);
        for (std::int64_t j = 0; j < config.expected_positions; ++j) {
          RotateVectorReference(rope, static_cast<double>(distance + j), world.shape().key_dim,
                                q.data(), turned.data());
          for (std::size_t d = 0; d < dim; ++d)
            sum[d] += turned[d] / static_cast<double>(config.expected_positions);
        }
        return sum;
      };
      std::vector<double> exponents;
      std::vector<std::int64_t> stream_tokens;
      for (std::size_t e = 0; e < view.entries.size(); ++e) {
        const std::int64_t distance =
            view.next_attention - view.attention[e] + view.entries[e].written.value;
        std::vector<std::vector<double>> turned;
        for (const auto& q : queries) turned.push_back(averaged(q, distance));
        for (std::int64_t slot = 0; slot < view.entries[e].tokens; ++slot) {
          const std::int64_t token = view.entries[e].logical.value + slot;
          const auto key = HeadKey(world, token, h / heads);
          double mean = 0.0;
          double squares = 0.0;
          for (const auto& q : turned) {
            double product = 0.0;
            for (std::size_t d = 0; d < dim; ++d) product += q[d] * static_cast<double>(key[d]);
            mean += product / static_cast<double>(turned.size());
            squares += product * product / static_cast<double>(turned.size());
          }
          exponents.push_back(
              queries.empty() ? 0.0 : scale * mean + scale * scale / 2 * (squares - mean * mean));
          stream_tokens.push_back(token);
        }
      }
      double sum = 0.0;
      for (const double e : exponents) sum += std::exp(e);
      for (std::size_t i = 0; i < exponents.size(); ++i) {
        for (std::size_t c = 0; c < view.candidates.size(); ++c) {
          const std::int64_t block =
              view.entries[static_cast<std::size_t>(view.candidates[c])].logical.value;
          if (stream_tokens[i] / world.shape().block_size != block / world.shape().block_size)
            continue;
          const auto value =
              std::span(world.value(stream_tokens[i]))
                  .subspan(static_cast<std::size_t>(h / heads * world.shape().value_dim),
                           static_cast<std::size_t>(world.shape().value_dim));
          expected[c] += std::exp(exponents[i]) / sum * std::sqrt(Dot(value, value));
        }
      }
    }
    Scores scores(view.candidates.size());
    policy->Score(view, scores);
    for (std::size_t c = 0; c < scores.size(); ++c)
      RC_ASSERT(std::abs(scores[c] - expected[c]) < 1e-4 * (1.0 + expected[c]));
  });
}

TEST(Random, IsAUniformSampleOfTheStream) {
  // 400 blocks go by, 20 stay: over many seeds each third of the stream has a third of the stay.
  std::array<int, 4> kept{};
  for (std::uint64_t seed = 0; seed < 200; ++seed) {
    PolicyWorld world({.kv_heads = 1, .query_heads = 1, .key_dim = 1, .value_dim = 1}, seed);
    const auto policy = Make(world, {.policy = "random", .policy_seed = seed});
    for (int i = 0; i < 400; ++i) {
      world.Step(8, 0, policy.get());
      const auto candidates = world.Candidates(0, 0);
      if (candidates.size() > 20)
        world.Evict(policy->Choose(world.View(candidates), 1), policy.get());
    }
    for (const TableEntry& entry : world.entries())
      ++kept[static_cast<std::size_t>(entry.logical.value / 800)];
  }
  for (const int count : kept) EXPECT_NEAR(count, 1000, 4 * std::sqrt(1000 * 0.75));
}

// What holds for whatever is registered.
class EveryPolicy : public testing::TestWithParam<std::string> {};

TEST_P(EveryPolicy, IsDeterministicForASeedAndClearForgets) {
  for (const std::int64_t kvcrush : {0, 2}) {
    if (kvcrush > 0 && GetParam() == "adaptive_rkv") continue;
    const EvictionConfig config{.policy = GetParam(), .policy_seed = 7, .kvcrush_budget = kvcrush};
    std::vector<std::vector<std::int64_t>> first_run;
    std::unique_ptr<Policy> policy;
    for (int run = 0; run < 3; ++run) {
      PolicyWorld world({}, 5);
      if (run < 2)
        policy = Make(world, config);
      else
        policy->Clear();
      std::vector<std::vector<std::int64_t>> choices;
      for (int step = 0; step < 6; ++step) {
        world.Step(24, 6 - step, policy.get());
        const auto candidates = world.Candidates(8, 1);
        if (candidates.size() < 2) continue;
        choices.push_back(policy->Choose(world.View(candidates), 2));
        world.Evict(choices.back(), policy.get());
      }
      if (run == 0) first_run = choices;
      EXPECT_EQ(choices, first_run) << "run " << run;
    }
  }
}

// A step that finds no room is planned again.
TEST_P(EveryPolicy, SaysTheSameWhenItIsAskedAgain) {
  for (const std::int64_t kvcrush : {0, 2}) {
    if (kvcrush > 0 && GetParam() == "adaptive_rkv") continue;
    PolicyWorld world({}, 6);
    const auto policy =
        Make(world, {.policy = GetParam(), .policy_seed = 7, .kvcrush_budget = kvcrush});
    for (int step = 0; step < 20; ++step) {
      world.Step(24, 20 - step, policy.get());
      const auto candidates = world.Candidates(8, 1);
      if (candidates.size() < 8) continue;
      const auto gone = policy->Choose(world.View(candidates), 3);
      EXPECT_EQ(policy->Choose(world.View(candidates), 3), gone);
      world.Evict(gone, policy.get());
    }
  }
}

TEST_P(EveryPolicy, HasALineForTheHelp) {
  const PolicyEntry* entry = FindPolicy(GetParam());
  ASSERT_NE(entry, nullptr);
  EXPECT_FALSE(entry->summary.empty());
  EXPECT_EQ(entry->summary.find('\n'), std::string::npos);
}

std::vector<std::string> Names() {
  std::vector<std::string> names;
  for (const PolicyEntry& entry : RegisteredPolicies()) names.push_back(entry.name);
  return names;
}

INSTANTIATE_TEST_SUITE_P(Registered, EveryPolicy, testing::ValuesIn(Names()),
                         [](const auto& policy) { return policy.param; });

}  // namespace
}  // namespace carousel
