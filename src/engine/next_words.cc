// SPDX-License-Identifier: Apache-2.0
#include "engine/next_words.h"

#include <algorithm>
#include <limits>

#include "base/check.h"

namespace carousel {
namespace {

using Limits = std::numeric_limits<float>;

// Banned words have probability 0; of the others the penalty is taken.
std::vector<Adjustment> AdjustmentsOf(std::span<const float> logits,
                                      const std::set<TokenId>& banned,
                                      const std::map<TokenId, double>& penalties) {
  std::map<TokenId, float> adjusted;
  for (const auto& [token, penalty] : penalties) {
    const float logit = logits[static_cast<std::size_t>(token)];
    if (logit == -Limits::infinity()) continue;
    adjusted[token] = static_cast<float>(
        std::max<double>(static_cast<double>(logit) - penalty, Limits::lowest()));
  }
  for (const TokenId token : banned) adjusted[token] = -Limits::infinity();
  std::vector<Adjustment> adjustments;
  for (const auto& [token, logit] : adjusted) adjustments.push_back({token, logit});
  return adjustments;
}

}  // namespace

void AddRepeats(std::span<const TokenId> prompt, std::span<const TokenId> answer, std::int64_t size,
                std::set<TokenId>* banned) {
  CAROUSEL_CHECK_LT(0, size);
  const std::int64_t tokens = std::ssize(prompt) + std::ssize(answer);
  const auto at = [&](std::int64_t i) {
    return i < std::ssize(prompt) ? prompt[static_cast<std::size_t>(i)]
                                  : answer[static_cast<std::size_t>(i - std::ssize(prompt))];
  };
  const std::int64_t tail = tokens - (size - 1);  // where the run that is not yet whole begins
  for (std::int64_t begin = 0; begin < tail; ++begin) {
    std::int64_t same = 0;
    while (same < size - 1 && at(begin + same) == at(tail + same)) ++same;
    if (same == size - 1) banned->insert(at(begin + same));
  }
}

std::vector<NextWord> NextWords::Best(std::span<const float> logits,
                                      const std::set<TokenId>& banned,
                                      const std::map<TokenId, double>& penalties,
                                      const std::set<TokenId>& ends, std::int64_t enough) {
  Summarise(logits, &summary_);
  CAROUSEL_CHECK(summary_.usable());
  adjustments_ = AdjustmentsOf(logits, banned, penalties);
  const AdjustedLogits adjusted(logits, summary_, adjustments_);
  std::vector<NextWord> best;
  if (adjusted.largest() == -Limits::infinity()) return best;
  words_.Begin(&adjusted, 1.0, Limits::lowest());
  std::int64_t going_on = 0;
  for (std::size_t rank = 0; going_on < enough && words_.Has(rank); ++rank) {
    const TokenId token = words_[rank].token();
    const auto penalty = penalties.find(token);
    best.push_back({.token = token,
                    .logprob = static_cast<double>(logits[static_cast<std::size_t>(token)]) -
                               summary_.log_sum_exp,
                    .penalty = penalty == penalties.end() ? 0.0 : penalty->second});
    if (!ends.contains(token)) ++going_on;
  }
  return best;
}

}  // namespace carousel
