// SPDX-License-Identifier: Apache-2.0
// An observation window: only the last queries of a chunk (at_end: of the prompt) vote, and a vote
// spreads to its neighbours by max-pooling. Li et al. 2024, "SnapKV: LLM Knows What You are Looking
// for Before Generation".
#include "eviction/mass_policy.h"
#include "eviction/registry.h"

namespace carousel {
namespace {

class SnapKv final : public MassPolicy {
 public:
  explicit SnapKv(const PolicyContext& context)
      : MassPolicy(context.shape.block_size, SnapKvImportance(context.config)),
        config_(context.config) {}

  std::unique_ptr<Policy> Clone() const override { return std::make_unique<SnapKv>(*this); }
  std::int64_t CountedQueries(const PolicyStep& step) const override {
    return SnapKvQueries(config_, step.tokens, step.prompt_left);
  }

 private:
  EvictionConfig config_;
};

}  // namespace

PolicyEntry SnapKvPolicy() {
  return {.name = "snapkv",
          .summary =
              "attention of each chunk's last queries, pooled (SnapKV, Li et al. 2024; "
              "--snapkv-window, --pooling-width, --aggregation)",
          .make = [](const PolicyContext& context) { return std::make_unique<SnapKv>(context); }};
}

}  // namespace carousel
