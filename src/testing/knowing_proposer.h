// SPDX-License-Identifier: Apache-2.0
// A proposer that knows the answer, and is wrong now and then.
#pragma once

#include <cstdint>
#include <span>
#include <utility>
#include <vector>

#include "carousel/draft_proposer.h"
#include "testing/random_draws.h"

namespace carousel {

class KnowingProposer final : public DraftProposer {
 public:
  // After `before` tokens of the sequence and its prompt comes `answer`. One guess in
  // `wrong_one_in` is another word of TinyModel's vocabulary.
  KnowingProposer(std::int64_t before, std::vector<TokenId> answer, std::int64_t wrong_one_in,
                  std::uint64_t seed)
      : before_(before), answer_(std::move(answer)), wrong_one_in_(wrong_one_in), random_(seed) {}

  void See(std::span<const TokenId> tokens) override { seen_ += std::ssize(tokens); }
  void Propose(std::int64_t most, std::vector<TokenId>* draft) override {
    for (std::int64_t i = seen_ - before_; i < std::ssize(answer_) && most > 0; ++i, --most) {
      TokenId token = answer_[static_cast<std::size_t>(i)];
      if (Pick(&random_, 1, wrong_one_in_) == 1) token = (token + 1) % 61;
      draft->push_back(token);
    }
  }

 private:
  std::int64_t before_;
  std::vector<TokenId> answer_;
  std::int64_t wrong_one_in_;
  Generator random_;
  std::int64_t seen_ = 0;
};

}  // namespace carousel
