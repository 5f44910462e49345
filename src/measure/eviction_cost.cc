// SPDX-License-Identifier: Apache-2.0
#include "measure/eviction_cost.h"

#include <algorithm>
#include <utility>
#include <vector>

#include "base/clock.h"
#include "base/parallel.h"
#include "engine/layer_attention.h"
#include "engine/sequence.h"
#include "engine/settings.h"
#include "engine/shared_cache.h"
#include "rope/rope_probe.h"

namespace carousel {
namespace {

constexpr double kTheta = 100000.0;

class FullCache {
 public:
  FullCache(const AttentionLoad& load, KvType type, Rotation rotation)
      : load_(load),
        layers_(static_cast<std::size_t>(ParallelWidth()), load.shape.layer),
        memory_(layers_, 0),
        shared_(SettingsOf(type, rotation), &memory_),
        sequence_(&shared_),
        attention_(&memory_),
        tokens_(static_cast<std::size_t>(load.shape.block_size)),
        out_(static_cast<std::size_t>(load.shape.block_size * load.shape.layer.query_heads *
                                      load.shape.layer.value_dim)) {
    shared_.Reserve();
  }

  std::int64_t layers() const { return std::ssize(layers_); }

  // One block more; returns the seconds that planning took.
  double Step(StepPlan* plan) {
    const auto begin = Clock::now();
    *plan = sequence_.Plan({.tokens = load_.shape.block_size, .is_prompt = true, .prompt_left = 1});
    const double seconds = SecondsSince(begin);
    const AttentionLayerSpec& layer = load_.shape.layer;
    // The load's tokens again and again.
    const std::int64_t first = plan->first_query_logical.value % load_.shape.context;
    const float* q = load_.q.data();
    const float* k = load_.k.data() + first * layer.kv_heads * layer.key_dim;
    const float* v = load_.v.data() + first * layer.kv_heads * layer.value_dim;
    attention_.Begin(&sequence_);
    for (std::int64_t i = 0; i < layers(); ++i)
      attention_.Attend(i, load_.shape.block_size, q, k, v, out_.data());
    sequence_.Commit(tokens_, 0);
    return seconds;
  }

 private:
  EngineSettings SettingsOf(KvType type, Rotation rotation) const {
    const std::int64_t block = load_.shape.block_size;
    EngineConfig config;
    config.cache.block_size = block;
    config.cache.key_type = config.cache.value_type = type;
    config.chunk_size = block;
    config.eviction->start_size = block;
    config.eviction->recent_size = block;
    config.eviction->max_cache_size = load_.shape.context;
    // What is compared is eviction, not the choice, which costs what the policy asks for.
    config.eviction->policy = "snapkv";
    config.eviction->rotation = rotation;
    config.eviction->positions = PositionPolicy::kCompact;
    ModelSpec spec;
    spec.layers = layers_;
    spec.trained_window = 4 * load_.shape.context;
    RopeProbeResult probe;
    probe.verdict = RopeVerdict::kRotates;
    const std::int64_t dim = load_.shape.layer.key_dim;
    probe.layers.assign(layers_.size(), {.verdict = RopeVerdict::kRotates,
                                         .rope = {.rotated_dims = dim,
                                                  .frequencies = PlainFrequencies(kTheta, dim)}});
    return Settle(spec, config, probe);
  }

  const AttentionLoad& load_;
  std::vector<AttentionLayerSpec> layers_;
  CacheMemory memory_;
  SharedCache shared_;
  Sequence sequence_;
  LayerAttention attention_;
  std::vector<TokenId> tokens_;  // [block_size]
  std::vector<float> out_;       // [block_size, H * value_dim]
};

}  // namespace

EvictionCost MeasureEviction(const AttentionLoad& load, KvType type, Rotation rotation,
                             std::int64_t rounds,
                             const std::function<void(std::int64_t)>& on_round) {
  FullCache cache(load, type, rotation);
  StepPlan plan;
  on_round(0);
  while (plan.evicted_tokens == 0) cache.Step(&plan);
  std::vector<double> seconds;
  std::int64_t rewritten = 0;
  for (std::int64_t round = 0; round < rounds; ++round) {
    on_round(round + 1);
    seconds.push_back(cache.Step(&plan) / static_cast<double>(cache.layers()));
    rewritten += plan.rotated_keys;
  }
  return {.seconds = SpreadOf(std::move(seconds)),
          .rewritten_keys = rewritten / (rounds * cache.layers())};
}

}  // namespace carousel
