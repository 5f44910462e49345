// SPDX-License-Identifier: Apache-2.0
// The policies by name.
#pragma once

#include <functional>
#include <memory>
#include <string>
#include <string_view>
#include <vector>

#include "eviction/policy.h"

namespace carousel {

struct PolicyEntry {
  std::string name;     // of --policy, [a-z0-9_]+
  std::string summary;  // one line for --help; names the paper
  // May throw carousel::Error for an option that makes no sense to it.
  std::function<std::unique_ptr<Policy>(const PolicyContext&)> make;
};

// All that are registered, the built-in ones first.
const std::vector<PolicyEntry>& RegisteredPolicies();
// nullptr when there is no such name.
const PolicyEntry* FindPolicy(std::string_view name);
// Adds a policy of an embedder's own; before engines are made, from one thread. Throws
// carousel::Error when the name is taken.
void RegisterPolicy(PolicyEntry entry);

// The policy that the configuration asks for, with KVCrush around it where it is on.
std::unique_ptr<Policy> MakePolicy(const PolicyContext& context);

// Throws carousel::Error for a policy that there is none of, or that does not go with KVCrush.
void ValidatePolicy(const EvictionConfig& config);

}  // namespace carousel
