// SPDX-License-Identifier: Apache-2.0
#include "eviction/registry.h"

#include <fmt/format.h>
#include <fmt/ranges.h>

#include <algorithm>

#include "base/check.h"
#include "carousel/error.h"
#include "eviction/kvcrush.h"

// One line per policy: the function that its file defines.
#define CAROUSEL_POLICIES(POLICY) \
  POLICY(SnapKvPolicy)            \
  POLICY(H2oPolicy)               \
  POLICY(TovaPolicy)              \
  POLICY(WindowPolicy)            \
  POLICY(KeyNormPolicy)           \
  POLICY(KeyDiffPolicy)           \
  POLICY(ExpectedAttentionPolicy) \
  POLICY(AdaptiveRkvPolicy)       \
  POLICY(RandomPolicy)

namespace carousel {

#define CAROUSEL_DECLARE_POLICY(function) PolicyEntry function();
CAROUSEL_POLICIES(CAROUSEL_DECLARE_POLICY)
#undef CAROUSEL_DECLARE_POLICY

namespace {

std::vector<PolicyEntry>& Policies() {
#define CAROUSEL_LIST_POLICY(function) function(),
  static std::vector<PolicyEntry> policies = {CAROUSEL_POLICIES(CAROUSEL_LIST_POLICY)};
#undef CAROUSEL_LIST_POLICY
  return policies;
}

[[noreturn]] void Refuse(std::string_view field, const std::string& problem) {
  throw Error(ErrorCode::kInvalidArgument, field, problem);
}

}  // namespace

const std::vector<PolicyEntry>& RegisteredPolicies() { return Policies(); }

const PolicyEntry* FindPolicy(std::string_view name) {
  const auto& policies = Policies();
  const auto found = std::find_if(policies.begin(), policies.end(),
                                  [&](const PolicyEntry& entry) { return entry.name == name; });
  return found == policies.end() ? nullptr : &*found;
}

void RegisterPolicy(PolicyEntry entry) {
  if (FindPolicy(entry.name) != nullptr)
    Refuse("policy", fmt::format("\"{}\" is taken; choose another name", entry.name));
  Policies().push_back(std::move(entry));
}

std::unique_ptr<Policy> MakePolicy(const PolicyContext& context) {
  const PolicyEntry* entry = FindPolicy(context.config.policy);
  CAROUSEL_CHECK(entry != nullptr);
  std::unique_ptr<Policy> policy = entry->make(context);
  if (context.config.kvcrush_budget > 0) policy = MakeKvCrush(std::move(policy), context);
  return policy;
}

void ValidatePolicy(const EvictionConfig& config) {
  if (FindPolicy(config.policy) == nullptr) {
    std::vector<std::string> names;
    for (const PolicyEntry& entry : Policies()) names.push_back(entry.name);
    Refuse("policy", fmt::format("\"{}\" is not a policy; use one of {}", config.policy,
                                 fmt::join(names, ", ")));
  }
  if (config.kvcrush_budget > 0 && config.policy == "adaptive_rkv")
    Refuse("kvcrush_budget", "adaptive_rkv chooses for diversity itself; use 0, or another policy");
}

}  // namespace carousel
