// SPDX-License-Identifier: Apache-2.0
#include "engine/request_line.h"

#include <algorithm>

namespace carousel {

bool ComesBefore(const OpenSequence& left, const OpenSequence& right) {
  const std::int64_t ours = left.run().request().priority;
  const std::int64_t theirs = right.run().request().priority;
  return ours != theirs ? ours > theirs : left.request < right.request;
}

void RequestLine::Wait(OpenSequence* sequence) {
  waiting_.reserve(waiting_.size() + 1);
  running_.reserve(running_.size() + waiting_.size() + 1);  // so that RunFirst does not throw
  std::erase(running_, sequence);
  const auto behind =
      std::find_if(waiting_.begin(), waiting_.end(),
                   [&](const OpenSequence* other) { return ComesBefore(*sequence, *other); });
  waiting_.insert(behind, sequence);
}

void RequestLine::RunFirst() {
  running_.push_back(waiting_.front());
  waiting_.erase(waiting_.begin());
}

void RequestLine::Leave(OpenSequence* sequence) {
  std::erase(running_, sequence);
  std::erase(waiting_, sequence);
  ++ended_;
}

}  // namespace carousel
