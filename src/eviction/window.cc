// SPDX-License-Identifier: Apache-2.0
// Sink and window: the start and the newest stay, the oldest between them goes. Xiao et al. 2023,
// "Efficient Streaming Language Models with Attention Sinks" (StreamingLLM).
#include "eviction/registry.h"

namespace carousel {
namespace {

class Window final : public Policy {
 public:
  std::unique_ptr<Policy> Clone() const override { return std::make_unique<Window>(*this); }
  std::int64_t CountedQueries(const PolicyStep& /*step*/) const override { return 0; }
  void Observe(const Observation& /*observation*/) override {}
  void Score(const GroupView& view, std::span<double> scores) override {
    for (std::size_t i = 0; i < scores.size(); ++i) {
      const auto entry = static_cast<std::size_t>(view.candidates[i]);
      scores[i] = static_cast<double>(view.entries[entry].logical.value);
    }
  }
  void Erase(std::span<const std::int64_t> /*entries*/) override {}
  void Insert(std::int64_t /*entry*/) override {}
  void Clear() override {}
};

}  // namespace

PolicyEntry WindowPolicy() {
  return {.name = "window",
          .summary = "the oldest go: start and newest tokens only (StreamingLLM, Xiao et al. 2023)",
          .make = [](const PolicyContext&) { return std::make_unique<Window>(); }};
}

}  // namespace carousel
