// SPDX-License-Identifier: Apache-2.0
// The control: a uniform sample of the stream. Each block draws one number when it comes and the
// lowest go, so that old and new blocks have the same chance (Vitter 1985, "Random Sampling with a
// Reservoir").
#include "base/mix.h"
#include "eviction/registry.h"

namespace carousel {
namespace {

class Random final : public Policy {
 public:
  explicit Random(const PolicyContext& context)
      : seed_(Mix(context.config.policy_seed) ^ static_cast<std::uint64_t>(context.group)) {}

  std::unique_ptr<Policy> Clone() const override { return std::make_unique<Random>(*this); }
  std::int64_t CountedQueries(const PolicyStep& /*step*/) const override { return 0; }
  void Observe(const Observation& /*observation*/) override {}
  void Score(const GroupView& view, std::span<double> scores) override {
    for (std::size_t i = 0; i < scores.size(); ++i) {
      const auto entry = static_cast<std::size_t>(view.candidates[i]);
      const auto block = static_cast<std::uint64_t>(view.entries[entry].logical.value);
      scores[i] = static_cast<double>(Mix(Mix(seed_) ^ block) >> 11) * 0x1p-53;  // in [0, 1)
    }
  }
  void Erase(std::span<const std::int64_t> /*entries*/) override {}
  void Insert(std::int64_t /*entry*/) override {}
  void Clear() override {}

 private:
  std::uint64_t seed_;
};

}  // namespace

PolicyEntry RandomPolicy() {
  return {.name = "random",
          .summary = "a uniform sample of the stream, for comparison (--policy-seed)",
          .make = [](const PolicyContext& context) { return std::make_unique<Random>(context); }};
}

}  // namespace carousel
