// SPDX-License-Identifier: Apache-2.0
// From a setting's place in the table to the value itself.
#pragma once

#include <cstddef>
#include <optional>
#include <string_view>
#include <type_traits>
#include <utility>
#include <variant>
#include <vector>

#include "config/setting.h"

namespace carousel {

// The struct of type Owner in `settings`, a SettingsView or a SettingsTarget; nullptr: not there.
template <typename Owner, typename Settings>
auto* OwnerIn(const Settings& settings) {
  if constexpr (std::is_same_v<Owner, SamplingParams>) {
    return settings.sampling;
  } else if constexpr (std::is_same_v<Owner, BeamParams>) {
    return settings.beams;
  } else {
    auto* const engine = settings.engine;
    if constexpr (std::is_same_v<Owner, EngineConfig>) {
      return engine;
    } else if constexpr (std::is_same_v<Owner, SchedulerConfig>) {
      return engine == nullptr ? nullptr : &engine->scheduler;
    } else if constexpr (std::is_same_v<Owner, CacheConfig>) {
      return engine == nullptr ? nullptr : &engine->cache;
    } else if constexpr (std::is_same_v<Owner, RecallConfig>) {
      return engine == nullptr ? nullptr : &engine->recall;
    } else {
      return engine == nullptr || !engine->eviction ? nullptr : &*engine->eviction;
    }
  }
}

// The value itself; nullptr: its struct is not there.
template <typename Owner, typename Value, typename Settings>
auto* ValueIn(Value Owner::*member, const Settings& settings) {
  auto* const owner = OwnerIn<Owner>(settings);
  return owner == nullptr ? nullptr : &(owner->*member);
}
template <typename Value, typename Settings>
auto* ValueIn(const Member<Value>& member, const Settings& settings) {
  return std::visit([&](auto at) { return ValueIn(at, settings); }, member);
}

// All of an enum's names, in its order.
template <typename Enum>
std::vector<std::string_view> EnumNames() {
  std::vector<std::string_view> names;
  while (true) {
    const std::string_view name = Name(static_cast<Enum>(names.size()));
    if (name.empty()) return names;
    names.push_back(name);
  }
}

// The place of a number, a text or a list of sizes.
template <typename Owner, typename Value>
Place At(Value Owner::*member) {
  return Member<Value>(member);
}

// The place of what is as many as `names`, by their order.
template <auto kMember>
Place ChoiceOf(std::vector<std::string_view> names) {
  using Value = std::remove_reference_t<decltype(*ValueIn(kMember, SettingsTarget{}))>;
  return Choice{.names = std::move(names),
                .get = [](SettingsView from) -> std::ptrdiff_t {
                  const Value* const value = ValueIn(kMember, from);
                  return value == nullptr ? -1 : static_cast<std::ptrdiff_t>(*value);
                },
                .set =
                    [](std::size_t index, SettingsTarget to) {
                      Value* const value = ValueIn(kMember, to);
                      if (value != nullptr) *value = static_cast<Value>(index);
                      return value != nullptr;
                    }};
}

// The place of an enum, as in ChoiceAt<&EvictionConfig::rotation>().
template <auto kMember>
Place ChoiceAt() {
  using Enum = std::remove_reference_t<decltype(*ValueIn(kMember, SettingsTarget{}))>;
  return ChoiceOf<kMember>(EnumNames<Enum>());
}

// The place of a bool.
template <auto kMember>
Place SwitchAt() {
  return ChoiceOf<kMember>({"off", "on"});
}

// The same of an enum that may be left to the engine, "auto".
template <auto kMember>
Place AutoChoiceAt() {
  using Optional = std::remove_reference_t<decltype(*ValueIn(kMember, SettingsTarget{}))>;
  using Enum = typename Optional::value_type;
  std::vector<std::string_view> names = EnumNames<Enum>();
  names.insert(names.begin(), "auto");
  return Choice{.names = std::move(names),
                .get = [](SettingsView from) -> std::ptrdiff_t {
                  const Optional* const value = ValueIn(kMember, from);
                  if (value == nullptr) return -1;
                  return value->has_value() ? static_cast<std::ptrdiff_t>(**value) + 1 : 0;
                },
                .set =
                    [](std::size_t index, SettingsTarget to) {
                      Optional* const value = ValueIn(kMember, to);
                      if (value == nullptr) return false;
                      *value = index == 0 ? Optional() : static_cast<Enum>(index - 1);
                      return true;
                    }};
}

}  // namespace carousel
