// SPDX-License-Identifier: Apache-2.0
// Heavy hitters: the attention that a block has received from all queries since it was written.
// Zhang et al. 2023, "H2O: Heavy-Hitter Oracle for Efficient Generative Inference of Large Language
// Models". Summed, or divided by the queries that could see the block (norm_sum), without which
// old blocks win by age.
#include "eviction/mass_policy.h"
#include "eviction/registry.h"

namespace carousel {
namespace {

class H2o final : public MassPolicy {
 public:
  explicit H2o(const PolicyContext& context)
      : MassPolicy(context.shape.block_size,
                   {.aggregation = context.config.aggregation, .pooling_width = 1}) {}

  std::unique_ptr<Policy> Clone() const override { return std::make_unique<H2o>(*this); }
  std::int64_t CountedQueries(const PolicyStep& step) const override { return step.tokens; }
};

}  // namespace

PolicyEntry H2oPolicy() {
  return {.name = "h2o",
          .summary = "attention of all queries, summed (H2O, Zhang et al. 2023; --aggregation)",
          .make = [](const PolicyContext& context) { return std::make_unique<H2o>(context); }};
}

}  // namespace carousel
