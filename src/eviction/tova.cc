// SPDX-License-Identifier: Apache-2.0
// The last query alone decides, again at each step; nothing is accumulated. Oren et al. 2024,
// "Transformers are Multi-State RNNs" (TOVA). Of a block its tokens' attention is summed.
#include "eviction/mass_policy.h"
#include "eviction/registry.h"

namespace carousel {
namespace {

class Tova final : public MassPolicy {
 public:
  explicit Tova(const PolicyContext& context)
      : MassPolicy(context.shape.block_size,
                   {.aggregation = Aggregation::kSum, .pooling_width = 1}),
        at_end_(context.config.prompt_eviction == PromptEviction::kAtEnd) {}

  std::unique_ptr<Policy> Clone() const override { return std::make_unique<Tova>(*this); }
  std::int64_t CountedQueries(const PolicyStep& step) const override {
    return at_end_ && step.prompt_left > 0 ? 0 : 1;
  }
  void Observe(const Observation& observation) override {
    if (observation.counted_queries > 0) tracker().Clear();
    MassPolicy::Observe(observation);
  }

 private:
  bool at_end_;
};

}  // namespace

PolicyEntry TovaPolicy() {
  return {.name = "tova",
          .summary = "attention of the last query alone (TOVA, Oren et al. 2024)",
          .make = [](const PolicyContext& context) { return std::make_unique<Tova>(context); }};
}

}  // namespace carousel
