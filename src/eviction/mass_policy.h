// SPDX-License-Identifier: Apache-2.0
// What the policies share that go by gathered attention mass.
#pragma once

#include "eviction/importance.h"
#include "eviction/policy.h"

namespace carousel {

class MassPolicy : public Policy {
 public:
  MassPolicy(std::int64_t block_size, const ImportanceOptions& options)
      : block_size_(block_size), tracker_(block_size, options) {}

  void Observe(const Observation& observation) override {
    tracker_.Record(observation.entries, observation.token_mass, observation.counted_queries);
  }
  void Score(const GroupView& view, std::span<double> scores) override;
  void ScoreTokens(const GroupView& view, std::span<double> scores) override;
  void Erase(std::span<const std::int64_t> entries) override { tracker_.Erase(entries); }
  void Insert(std::int64_t entry) override { tracker_.Insert(entry); }
  void Clear() override { tracker_.Clear(); }
  std::int64_t bytes() const override { return tracker_.bytes(); }

 protected:
  ImportanceTracker& tracker() { return tracker_; }

 private:
  std::int64_t block_size_;
  ImportanceTracker tracker_;
};

}  // namespace carousel
