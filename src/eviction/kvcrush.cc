// SPDX-License-Identifier: Apache-2.0
#include "eviction/kvcrush.h"

#include <algorithm>
#include <numeric>
#include <random>

#include "base/check.h"
#include "base/mix.h"

namespace carousel {
namespace {

class KvCrush final : public Policy {
 public:
  KvCrush(std::unique_ptr<Policy> scores, const PolicyContext& context)
      : scores_(std::move(scores)),
        budget_(context.config.kvcrush_budget),
        anchor_(context.config.kvcrush_anchor),
        block_size_(static_cast<std::size_t>(context.shape.block_size)),
        seed_(context.config.policy_seed + static_cast<std::uint64_t>(context.group)) {}

  KvCrush(const KvCrush& from)
      : scores_(from.scores_->Clone()),
        budget_(from.budget_),
        anchor_(from.anchor_),
        block_size_(from.block_size_),
        seed_(from.seed_) {}

  std::unique_ptr<Policy> Clone() const override { return std::make_unique<KvCrush>(*this); }
  std::int64_t CountedQueries(const PolicyStep& step) const override {
    return scores_->CountedQueries(step);
  }
  bool WantsVectors() const override { return scores_->WantsVectors(); }
  void Observe(const Observation& observation) override { scores_->Observe(observation); }
  void Score(const GroupView& view, std::span<double> scores) override {
    scores_->Score(view, scores);
  }
  void ScoreTokens(const GroupView& view, std::span<double> scores) override {
    scores_->ScoreTokens(view, scores);
  }
  std::vector<std::int64_t> Choose(const GroupView& view, std::int64_t count) override;
  void Erase(std::span<const std::int64_t> entries) override { scores_->Erase(entries); }
  void Insert(std::int64_t entry) override { scores_->Insert(entry); }
  void Clear() override { scores_->Clear(); }
  std::int64_t bytes() const override { return scores_->bytes(); }

 private:
  std::vector<bool> Indicators(const GroupView& view);
  std::vector<bool> Anchor(const GroupView& view, const std::vector<bool>& indicators) const;

  std::unique_ptr<Policy> scores_;
  std::int64_t budget_;
  KvCrushAnchor anchor_;
  std::size_t block_size_;
  std::uint64_t seed_;
};

// [candidates * block_size]
std::vector<bool> KvCrush::Indicators(const GroupView& view) {
  std::vector<double> scores(view.candidates.size() * block_size_);
  scores_->ScoreTokens(view, scores);
  std::vector<std::size_t> order(scores.size());
  std::iota(order.begin(), order.end(), 0);
  const auto half = order.begin() + static_cast<std::ptrdiff_t>(order.size() / 2);
  std::partial_sort(order.begin(), half, order.end(), [&](std::size_t a, std::size_t b) {
    return scores[a] > scores[b] || (scores[a] == scores[b] && a < b);
  });
  std::vector<bool> indicators(scores.size(), false);
  for (auto token = order.begin(); token != half; ++token) indicators[*token] = true;
  return indicators;
}

// A random one hangs on how long the stream is, so that whoever asks again gets the same.
std::vector<bool> KvCrush::Anchor(const GroupView& view,
                                  const std::vector<bool>& indicators) const {
  const TableEntry& last = view.entries.back();
  const auto length = static_cast<std::uint64_t>((last.logical + last.tokens).value);
  std::mt19937_64 random(Mix(seed_) ^ length);
  std::vector<bool> anchor(block_size_, anchor_ == KvCrushAnchor::kOnes);
  const std::size_t blocks = indicators.size() / block_size_;
  for (std::size_t slot = 0; slot < block_size_; ++slot) {
    if (anchor_ == KvCrushAnchor::kRandom) anchor[slot] = (random() & 1) != 0;
    if (anchor_ == KvCrushAnchor::kAlternating) anchor[slot] = slot % 2 == 1;
    if (anchor_ == KvCrushAnchor::kMean) {
      std::size_t ones = 0;
      for (std::size_t block = 0; block < blocks; ++block)
        ones += indicators[block * block_size_ + slot] ? 1 : 0;
      anchor[slot] = 2 * ones > blocks;
    }
  }
  return anchor;
}

std::vector<std::int64_t> KvCrush::Choose(const GroupView& view, std::int64_t count) {
  if (count == 0) return {};
  const auto candidates = static_cast<std::int64_t>(view.candidates.size());
  const std::int64_t wanted = std::min(candidates, count + budget_);
  std::vector<std::int64_t> dropped = scores_->Choose(view, wanted);
  const std::int64_t taken_back = wanted - count;
  if (taken_back == 0) return dropped;
  const std::vector<bool> indicators = Indicators(view);
  const std::vector<bool> anchor = Anchor(view, indicators);
  const auto distance = [&](std::int64_t entry) {
    const auto place = static_cast<std::size_t>(
        std::lower_bound(view.candidates.begin(), view.candidates.end(), entry) -
        view.candidates.begin());
    std::size_t different = 0;
    for (std::size_t slot = 0; slot < block_size_; ++slot)
      different += indicators[place * block_size_ + slot] != anchor[slot] ? 1 : 0;
    return different;
  };
  std::vector<std::pair<std::size_t, std::int64_t>> by_distance;
  for (const std::int64_t entry : dropped) by_distance.emplace_back(distance(entry), entry);
  std::sort(by_distance.begin(), by_distance.end());
  const std::int64_t spacing = wanted / taken_back;
  for (std::int64_t i = 0; i < taken_back; ++i)
    std::erase(dropped, by_distance[static_cast<std::size_t>(i * spacing)].second);
  return dropped;
}

}  // namespace

std::unique_ptr<Policy> MakeKvCrush(std::unique_ptr<Policy> scores, const PolicyContext& context) {
  CAROUSEL_CHECK_GT(context.config.kvcrush_budget, 0);
  return std::make_unique<KvCrush>(std::move(scores), context);
}

}  // namespace carousel
