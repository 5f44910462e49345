// SPDX-License-Identifier: Apache-2.0
#include "engine/prompt_lookup.h"

#include <algorithm>

#include "base/mix.h"

namespace carousel {

// Of the min_ngram_ tokens before the place, which are there.
std::size_t PromptLookup::BucketBefore(std::int64_t place) const {
  std::uint64_t hash = 0;
  for (std::int64_t i = place - min_ngram_; i < place; ++i)
    hash = Mix(hash ^ static_cast<std::uint64_t>(tokens_[static_cast<std::size_t>(i)]));
  return static_cast<std::size_t>(hash) & (newest_.size() - 1);
}

void PromptLookup::Add(std::int64_t place) {
  Place& newest = newest_[BucketBefore(place)];
  earlier_[static_cast<std::size_t>(place)] = newest;
  newest = static_cast<Place>(place);
}

// Keeps the table at least as large as there are tokens.
void PromptLookup::Grow() {
  if (tokens_.size() <= newest_.size()) return;
  std::size_t size = std::max<std::size_t>(newest_.size(), 1024);
  while (size < tokens_.size()) size *= 2;
  newest_.assign(size, kNone);
  for (std::int64_t place = min_ngram_; place < std::ssize(earlier_); ++place) Add(place);
}

void PromptLookup::See(std::span<const TokenId> tokens) {
  const std::int64_t first = std::ssize(earlier_);
  tokens_.insert(tokens_.end(), tokens.begin(), tokens.end());
  if (tokens_.size() >= kNone) return;
  Grow();
  earlier_.resize(tokens_.size(), kNone);
  for (std::int64_t place = std::max(first, min_ngram_); place < std::ssize(tokens_); ++place)
    Add(place);
}

// How many tokens before the place are the last ones seen, up to kLongestMatch.
std::int64_t PromptLookup::CommonBefore(std::int64_t place) const {
  const std::int64_t most = std::min(place, kLongestMatch);
  const std::int64_t end = std::ssize(tokens_);
  std::int64_t common = 0;
  while (common < most && tokens_[static_cast<std::size_t>(place - 1 - common)] ==
                              tokens_[static_cast<std::size_t>(end - 1 - common)])
    ++common;
  return common;
}

// Where to read on; -1: the last tokens are new.
std::int64_t PromptLookup::FindPlace() const {
  std::int64_t found = -1;
  std::int64_t longest = min_ngram_ - 1;
  Place place = newest_[BucketBefore(std::ssize(tokens_))];
  for (std::int64_t looked = 0; place != kNone && looked < kMostLooked; ++looked) {
    const std::int64_t common = CommonBefore(place);
    if (common > longest) {
      longest = common;
      found = place;
    }
    place = earlier_[place];
  }
  return found;
}

void PromptLookup::Propose(std::int64_t most, std::vector<TokenId>* draft) {
  if (std::ssize(tokens_) <= min_ngram_) return;
  const std::int64_t place = FindPlace();
  if (place < 0) return;
  // Where the match reaches into what is guessed (a pattern that repeats), the guess goes on.
  for (std::int64_t i = 0; i < most; ++i) {
    const std::int64_t from = place + i;
    const std::int64_t beyond = from - std::ssize(tokens_);
    draft->push_back(beyond < 0 ? tokens_[static_cast<std::size_t>(from)]
                                : (*draft)[static_cast<std::size_t>(beyond)]);
  }
}

}  // namespace carousel
