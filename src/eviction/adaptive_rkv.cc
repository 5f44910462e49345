// SPDX-License-Identifier: Apache-2.0
// Attention first, then variety. R-KV: Cai et al. 2025, "R-KV: Redundancy-aware KV Cache
// Compression for Training-Free Reasoning Models Acceleration", in the adaptive form of
// openvino.genai (its documentation of AggregationMode.ADAPTIVE_RKV): of the evictable blocks those
// stay that hold a given part of the attention; what room is left goes to the most diverse of the
// others.
//
// A block's attention: the token mass of the last steps (rkv_window of them) is averaged, pooled
// over neighbours, and summed. Its diversity: minus the mean cosine similarity between its tokens'
// keys and the keys of all blocks that attention did not save; of each token's similarities to the
// evictable tokens, those below their mean count as 0; heads are averaged.
#include <algorithm>
#include <cmath>
#include <deque>
#include <limits>
#include <numeric>

#include "eviction/importance.h"
#include "eviction/key_planes.h"
#include "eviction/registry.h"

namespace carousel {
namespace {

class AdaptiveRkv final : public Policy {
 public:
  explicit AdaptiveRkv(const PolicyContext& context)
      : config_(context.config), shape_(context.shape), rope_(context.rope) {}

  std::unique_ptr<Policy> Clone() const override { return std::make_unique<AdaptiveRkv>(*this); }
  std::int64_t CountedQueries(const PolicyStep& step) const override {
    return SnapKvQueries(config_, step.tokens, step.prompt_left);
  }
  void Observe(const Observation& observation) override;
  void Score(const GroupView& view, std::span<double> scores) override;
  std::vector<std::int64_t> Choose(const GroupView& view, std::int64_t count) override;
  void Erase(std::span<const std::int64_t> entries) override {
    for (std::vector<float>& step : steps_) EraseEntries(entries, shape_.block_size, &step);
  }
  // In the steps before, it counts as an entry that got nothing.
  void Insert(std::int64_t entry) override {
    for (std::vector<float>& step : steps_) InsertEntry(entry, shape_.block_size, &step);
  }
  void Clear() override { steps_.clear(); }
  std::int64_t bytes() const override {
    std::int64_t bytes = 0;
    for (const std::vector<float>& step : steps_) bytes += BytesOf(step);
    return bytes;
  }

 private:
  std::vector<double> Diversity(const GroupView& view, std::span<const std::size_t> blocks) const;

  EvictionConfig config_;
  BlockShape shape_;
  LayerRope rope_;
  std::deque<std::vector<float>> steps_;  // token mass of the last steps, [entries * block_size]
};

void AdaptiveRkv::Observe(const Observation& observation) {
  if (observation.counted_queries == 0) return;
  steps_.emplace_back(observation.token_mass.begin(), observation.token_mass.end());
  if (static_cast<std::int64_t>(steps_.size()) > config_.rkv_window) steps_.pop_front();
}

void AdaptiveRkv::Score(const GroupView& view, std::span<double> scores) {
  const auto block_size = static_cast<std::size_t>(shape_.block_size);
  std::vector<float> mean(view.entries.size() * block_size, 0.0F);
  for (const std::vector<float>& step : steps_) {
    for (std::size_t i = 0; i < step.size(); ++i)
      mean[i] += step[i] / static_cast<float>(steps_.size());
  }
  std::vector<float> pooled(mean.size());
  MaxPool(mean, config_.pooling_width, pooled);
  for (std::size_t i = 0; i < scores.size(); ++i) {
    const auto begin = static_cast<std::size_t>(view.candidates[i]) * block_size;
    const bool heard = !steps_.empty() && begin < steps_.back().size();
    scores[i] = heard ? 0.0 : std::numeric_limits<double>::infinity();
    for (std::size_t slot = 0; slot < block_size && heard; ++slot)
      scores[i] += static_cast<double>(pooled[begin + slot]);
  }
}

// One number for each of `blocks`, which are places among the candidates.
std::vector<double> AdaptiveRkv::Diversity(const GroupView& view,
                                           std::span<const std::size_t> blocks) const {
  const auto block_size = static_cast<std::size_t>(shape_.block_size);
  const std::size_t tokens = view.candidates.size() * block_size;
  std::vector<double> diversity(blocks.size(), 0.0);
  std::vector<bool> compared(view.candidates.size(), false);
  for (const std::size_t block : blocks) compared[block] = true;
  std::vector<float> similarity(tokens);
  for (std::int64_t head = 0; head < shape_.kv_heads; ++head) {
    const KeyPlanes keys(view, shape_, rope_, head, KeyPlanes::Scale::kUnit);
    for (std::size_t i = 0; i < blocks.size(); ++i) {
      for (std::size_t slot = 0; slot < block_size; ++slot) {
        keys.DotAll(blocks[i], slot, similarity);
        similarity[blocks[i] * block_size + slot] = 0.0F;  // itself
        const float mean = std::accumulate(similarity.begin(), similarity.end(), 0.0F) /
                           static_cast<float>(tokens);
        double sum = 0.0;
        for (std::size_t t = 0; t < tokens; ++t) {
          if (compared[t / block_size] && similarity[t] >= mean)
            sum += static_cast<double>(similarity[t]);
        }
        diversity[i] -= sum;
      }
    }
  }
  return diversity;  // a common divisor changes no order
}

std::vector<std::int64_t> AdaptiveRkv::Choose(const GroupView& view, std::int64_t count) {
  std::vector<double> scores(view.candidates.size());
  Score(view, scores);
  std::vector<std::size_t> order(scores.size());
  std::iota(order.begin(), order.end(), 0);
  std::stable_sort(order.begin(), order.end(),
                   [&](std::size_t a, std::size_t b) { return scores[a] > scores[b]; });
  double total = 0.0;
  for (const double score : scores) total += std::isinf(score) ? 0.0 : score;
  const std::size_t room = scores.size() - static_cast<std::size_t>(count);
  std::size_t saved = 0;  // of `order`, from its front
  double mass = 0.0;
  while (saved < room &&
         (std::isinf(scores[order[saved]]) || mass < config_.rkv_attention_mass * total)) {
    mass += std::isinf(scores[order[saved]]) ? 0.0 : scores[order[saved]];
    ++saved;
  }
  std::vector<std::size_t> rest(order.begin() + static_cast<std::ptrdiff_t>(saved), order.end());
  std::sort(rest.begin(), rest.end());
  std::vector<std::int64_t> entries;
  for (const std::size_t block : rest) entries.push_back(view.candidates[block]);
  if (saved == room) return entries;
  return LowestScores(entries, Diversity(view, rest), count);
}

}  // namespace

PolicyEntry AdaptiveRkvPolicy() {
  return {
      .name = "adaptive_rkv",
      .summary =
          "attention, then diversity of keys (R-KV, Cai et al. 2025, as in "
          "openvino.genai; --rkv-attention-mass, --rkv-window)",
      .make = [](const PolicyContext& context) { return std::make_unique<AdaptiveRkv>(context); }};
}

}  // namespace carousel
