// SPDX-License-Identifier: Apache-2.0
#include "engine/prefix_index.h"

#include <algorithm>
#include <utility>

#include "base/check.h"
#include "base/mix.h"

namespace carousel {
PrefixChain PrefixIndex::ChainOf(const SharedCache* shared, const Request& request) {
  PrefixChain chain{.shared = shared, .chain = {}};
  std::uint64_t hash = reinterpret_cast<std::uintptr_t>(shared);
  for (const TokenSpan& span : request.pinned) {
    hash = Mix(hash ^ static_cast<std::uint64_t>(span.begin));
    hash = Mix(hash ^ static_cast<std::uint64_t>(span.end));
  }
  const std::int64_t block_size = shared->block_size();
  for (std::int64_t i = 0; i < std::ssize(request.prompt); ++i) {
    hash = Mix(hash ^ static_cast<std::uint64_t>(request.prompt[static_cast<std::size_t>(i)]));
    if ((i + 1) % block_size == 0) chain.chain.push_back(hash);
  }
  return chain;
}

PrefixIndex::Place PrefixIndex::At(const PrefixChain& chain, std::int64_t blocks) {
  const auto found = by_hash_.find(chain.chain[static_cast<std::size_t>(blocks - 1)]);
  if (found == by_hash_.end() || found->second->shared != chain.shared) return used_.end();
  return found->second;
}

const Sequence* PrefixIndex::Find(const PrefixChain& chain, std::span<const TokenId> prompt,
                                  std::int64_t least) {
  const std::int64_t block_size = chain.shared->block_size();
  // Of a prompt that ends with a block the last one is not there to find.
  std::int64_t blocks = (std::ssize(prompt) - 1) / block_size;
  for (; blocks * block_size > least; --blocks) {
    const Place place = At(chain, blocks);
    if (place == used_.end()) continue;
    const auto history = place->sequence->history();
    if (std::ssize(history) != blocks * block_size ||
        !std::equal(history.begin(), history.end(), prompt.begin()))
      continue;
    used_.splice(used_.begin(), used_, place);
    return place->sequence.get();
  }
  return nullptr;
}

bool PrefixIndex::Has(const PrefixChain& chain, std::int64_t blocks) {
  const Place place = At(chain, blocks);
  if (place == used_.end()) return false;
  used_.splice(used_.begin(), used_, place);
  return true;
}

void PrefixIndex::Add(const PrefixChain& chain, std::int64_t blocks,
                      std::unique_ptr<Sequence> sequence) {
  const std::uint64_t hash = chain.chain[static_cast<std::size_t>(blocks - 1)];
  if (by_hash_.contains(hash)) return;
  const std::int64_t bytes = sequence->bytes();
  used_.push_front(
      {.hash = hash, .shared = chain.shared, .sequence = std::move(sequence), .bytes = bytes});
  try {
    by_hash_.emplace(hash, used_.begin());
  } catch (...) {
    used_.pop_front();
    throw;
  }
  bytes_ += bytes;
  while (bytes_ > limit_bytes_) DropOldest();
}

bool PrefixIndex::DropOldest() {
  if (used_.empty()) return false;
  bytes_ -= used_.back().bytes;
  by_hash_.erase(used_.back().hash);
  used_.pop_back();
  return true;
}

std::vector<const Sequence*> PrefixIndex::sequences() const {
  std::vector<const Sequence*> all;
  for (const Checkpoint& checkpoint : used_) all.push_back(checkpoint.sequence.get());
  return all;
}

void PrefixIndex::CheckIntegrity(Holdings* holdings) const {
  CAROUSEL_CHECK_EQ(by_hash_.size(), used_.size());
  std::int64_t bytes = 0;
  for (auto checkpoint = used_.begin(); checkpoint != used_.end(); ++checkpoint) {
    const auto found = by_hash_.find(checkpoint->hash);
    CAROUSEL_CHECK(found != by_hash_.end());
    CAROUSEL_CHECK(&*found->second == &*checkpoint);
    bytes += checkpoint->bytes;
    checkpoint->sequence->CheckIntegrity(/*is_moved_out=*/false, holdings);
  }
  CAROUSEL_CHECK_EQ(bytes, bytes_);
  if (keeps()) CAROUSEL_CHECK_LE(bytes_, limit_bytes_);
}

}  // namespace carousel
