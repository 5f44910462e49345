// SPDX-License-Identifier: Apache-2.0
#include "engine/adjusted_logits.h"

#include <algorithm>
#include <array>
#include <bit>
#include <cmath>
#include <limits>

namespace carousel {
namespace {

constexpr float kInfinity = std::numeric_limits<float>::infinity();
constexpr std::uint32_t kSign = 0x80000000U;

}  // namespace

// A float's bits are in the order of the floats once the sign of positive ones and all bits of
// negative ones are flipped. Adding 0 makes one number of 0 and -0.
RankedWord::RankedWord(float logit, TokenId token) {
  const auto bits = std::bit_cast<std::uint32_t>(logit + 0.0F);
  const std::uint32_t ordered = (bits & kSign) != 0 ? ~bits : bits | kSign;
  bits_ = std::uint64_t{ordered} << 32U | static_cast<std::uint32_t>(~token);
}

float RankedWord::logit() const {
  const auto ordered = static_cast<std::uint32_t>(bits_ >> 32U);
  return std::bit_cast<float>((ordered & kSign) != 0 ? ordered & ~kSign : ~ordered);
}

TokenId RankedWord::token() const { return ~static_cast<TokenId>(bits_ & 0xFFFFFFFFU); }

AdjustedLogits::AdjustedLogits(std::span<const float> logits, const LogitsSummary& summary,
                               std::span<const Adjustment> adjustments)
    : logits_(logits),
      block_largest_(summary.block_largest),
      adjustments_(adjustments),
      largest_(-kInfinity) {
  if (adjustments.empty()) {
    largest_ = summary.largest;
    return;
  }
  for (const Adjustment& adjustment : adjustments) largest_ = std::max(largest_, adjustment.logit);
  ForEachBlock([this](float bound) { return bound > largest_; },
               [this](TokenId /*first*/, std::span<const float> block) {
                 largest_ = std::max(largest_, Largest(block));
               });
}

template <typename Wanted, typename Function>
void AdjustedLogits::ForEachBlock(const Wanted& wanted, const Function& function) const {
  std::array<float, kLogitsBlock> copy;
  auto next = adjustments_.begin();
  for (std::size_t block = 0; block < block_largest_.size(); ++block) {
    const std::size_t first = block * kLogitsBlock;
    std::span<const float> words = logits_.subspan(first);
    words = words.first(std::min<std::size_t>(words.size(), kLogitsBlock));
    float bound = block_largest_[block];
    const auto begin = next;
    while (next != adjustments_.end() &&
           static_cast<std::size_t>(next->token) < first + words.size()) {
      bound = std::max(bound, next->logit);
      ++next;
    }
    if (!wanted(bound)) continue;
    if (begin != next) {
      std::copy(words.begin(), words.end(), copy.begin());
      for (auto replaced = begin; replaced != next; ++replaced)
        copy[static_cast<std::size_t>(replaced->token) - first] = replaced->logit;
      words = std::span<const float>(copy).first(words.size());
    }
    function(static_cast<TokenId>(first), words);
  }
}

TokenId AdjustedLogits::Likeliest() const {
  std::vector<RankedWord> words;
  AppendWords(largest_, kInfinity, &words);
  return words.front().token();
}

void AdjustedLogits::AppendWords(float at_least, float below,
                                 std::vector<RankedWord>* words) const {
  std::array<std::int32_t, kLogitsBlock> found;
  ForEachBlock([at_least](float bound) { return bound >= at_least; },
               [&](TokenId first, std::span<const float> block) {
                 const std::int64_t count = FindLogits(block, at_least, below, found.data());
                 for (std::int64_t i = 0; i < count; ++i) {
                   const std::int32_t word = found[static_cast<std::size_t>(i)];
                   words->emplace_back(block[static_cast<std::size_t>(word)], first + word);
                 }
               });
}

double AdjustedLogits::Weight(float logit, double temperature) const {
  return std::exp((static_cast<double>(logit) - static_cast<double>(largest_)) / temperature);
}

// The row is summed as it lies. What is replaced is then taken off and its replacement added, which
// costs no precision, as neither is among the likeliest words here.
BoundedSum AdjustedLogits::SumBelow(float below, double temperature) const {
  constexpr double kErrorOfLightWords = 1e-12;  // of a million, each too light for a relative error
  const double row = SumExpBelow(logits_, largest_, temperature, below);
  double change = 0.0;
  for (const Adjustment& adjustment : adjustments_) {
    const float replaced = logits_[static_cast<std::size_t>(adjustment.token)];
    if (replaced < below) change -= Weight(replaced, temperature);
    if (adjustment.logit < below) change += Weight(adjustment.logit, temperature);
  }
  return {.sum = row + change, .error = kSumExpError * row + kErrorOfLightWords};
}

double AdjustedLogits::ExactSumBelow(float below, double temperature) const {
  double sum = 0.0;
  ForEachBlock([](float bound) { return bound != -kInfinity; },
               [&](TokenId /*first*/, std::span<const float> block) {
                 for (const float logit : block) {
                   if (logit < below) sum += Weight(logit, temperature);
                 }
               });
  return sum;
}

}  // namespace carousel
