// SPDX-License-Identifier: Apache-2.0
#include "examples/peak_policy.h"

#include <algorithm>

namespace carousel {
namespace {

// A block is worth the most attention that one of its tokens ever got in one step.
class Peak final : public Policy {
 public:
  explicit Peak(std::int64_t block_size) : block_size_(block_size) {}

  std::unique_ptr<Policy> Clone() const override { return std::make_unique<Peak>(*this); }
  std::int64_t CountedQueries(const PolicyStep& step) const override { return step.tokens; }

  void Observe(const Observation& seen) override {
    peaks_.resize(seen.entries.size(), 0.0F);
    for (std::size_t slot = 0; slot < seen.token_mass.size(); ++slot) {
      float& peak = peaks_[slot / static_cast<std::size_t>(block_size_)];
      peak = std::max(peak, seen.token_mass[slot] / static_cast<float>(seen.counted_queries));
    }
  }

  void Score(const GroupView& view, std::span<double> scores) override {
    for (std::size_t i = 0; i < scores.size(); ++i)
      scores[i] = static_cast<double>(peaks_[static_cast<std::size_t>(view.candidates[i])]);
  }

  void Erase(std::span<const std::int64_t> entries) override { EraseEntries(entries, 1, &peaks_); }
  void Insert(std::int64_t entry) override { InsertEntry(entry, 1, &peaks_); }
  void Clear() override { peaks_.clear(); }

 private:
  std::int64_t block_size_;
  std::vector<float> peaks_;  // by entry of the group's table
};

}  // namespace

PolicyEntry PeakPolicy() {
  return {.name = "peak",
          .summary = "the most attention that a token of the block got at once",
          .make = [](const PolicyContext& context) {
            return std::make_unique<Peak>(context.shape.block_size);
          }};
}

}  // namespace carousel
