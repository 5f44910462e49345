// SPDX-License-Identifier: Apache-2.0
// Prompt lookup (Saxena 2023): what followed the last tokens when they stood together before, in
// the prompt, in the answer, or in anything that the sequence has ever read.
#pragma once

#include <cstdint>
#include <span>
#include <vector>

#include "carousel/draft_proposer.h"

namespace carousel {

// Places are found by a hash of `min_ngram` tokens and a chain of earlier places of the same hash,
// the newest first, as LZ77 compressors do it (RFC 1951, section 4), and then compared token by
// token. Of the newest kMostLooked places the one with most tokens in common before it is taken, of
// equal ones the newest. A token seen takes 8 bytes and its share of a table of at most 8 more.
class PromptLookup final : public DraftProposer {
 public:
  static constexpr std::int64_t kMostLooked = 16;
  static constexpr std::int64_t kLongestMatch = 32;

  // min_ngram >= 1.
  explicit PromptLookup(std::int64_t min_ngram) : min_ngram_(min_ngram) {}

  void See(std::span<const TokenId> tokens) override;
  void Propose(std::int64_t most, std::vector<TokenId>* draft) override;

 private:
  // Places are indices into tokens_. One after kNone cannot be told from it: then nothing is added.
  using Place = std::uint32_t;
  static constexpr Place kNone = 0xFFFFFFFFU;

  std::size_t BucketBefore(std::int64_t place) const;
  void Add(std::int64_t place);
  void Grow();
  std::int64_t CommonBefore(std::int64_t place) const;
  std::int64_t FindPlace() const;

  std::int64_t min_ngram_;
  std::vector<TokenId> tokens_;
  std::vector<Place> newest_;   // [a power of two], by hash of the tokens before the place
  std::vector<Place> earlier_;  // [tokens], the next older place of the same hash
};

}  // namespace carousel
