// SPDX-License-Identifier: Apache-2.0
#include "engine/request_line.h"

#include <algorithm>
#include <set>

#include "base/check.h"

namespace carousel {

bool ComesBefore(const OpenSequence& left, const OpenSequence& right) {
  const std::int64_t ours = left.run().request().priority;
  const std::int64_t theirs = right.run().request().priority;
  return ours != theirs ? ours > theirs : left.request < right.request;
}

void RequestLine::ReserveOne() {
  const std::size_t all = running_.size() + waiting_.size() + 1;
  running_.reserve(all);
  waiting_.reserve(all);
}

void RequestLine::Wait(OpenSequence* sequence) noexcept {
  std::erase(running_, sequence);
  const auto behind =
      std::find_if(waiting_.begin(), waiting_.end(),
                   [&](const OpenSequence* other) { return ComesBefore(*sequence, *other); });
  waiting_.insert(behind, sequence);
}

void RequestLine::RunFirst() noexcept {
  running_.push_back(waiting_.front());
  waiting_.erase(waiting_.begin());
}

void RequestLine::CheckIntegrity() const {
  std::set<const OpenSequence*> all;
  for (const OpenSequence* open : running_) {
    CAROUSEL_CHECK(open->run().HasRequest());
    CAROUSEL_CHECK(!open->is_moved_out());
    CAROUSEL_CHECK(all.insert(open).second);
  }
  for (std::size_t i = 0; i < waiting_.size(); ++i) {
    CAROUSEL_CHECK(waiting_[i]->run().HasRequest());
    CAROUSEL_CHECK(all.insert(waiting_[i]).second);
    if (i > 0) CAROUSEL_CHECK(ComesBefore(*waiting_[i - 1], *waiting_[i]));
  }
}

void RequestLine::Leave(OpenSequence* sequence) noexcept {
  std::erase(running_, sequence);
  std::erase(waiting_, sequence);
  ++departures_;
}

}  // namespace carousel
