// SPDX-License-Identifier: Apache-2.0
#include "answers/settings_json.h"

#include <gtest/gtest.h>

#include <functional>
#include <nlohmann/json.hpp>
#include <string>

#include "carousel/error.h"
#include "config/setting_table.h"
#include "config/setting_value.h"

namespace carousel {
namespace {

using nlohmann::json;
using nlohmann::ordered_json;

ordered_json Written(SettingsView settings) {
  ordered_json object = ordered_json::object();
  for (const SettingGroup group :
       {SettingGroup::kEviction, SettingGroup::kRecall, SettingGroup::kCache,
        SettingGroup::kScheduling, SettingGroup::kSampling, SettingGroup::kBeams})
    WriteSettings(group, settings, &object);
  return object;
}

TEST(SettingsJson, HasEverySettingUnderItsName) {
  const EngineConfig engine;
  const SamplingParams sampling;
  const BeamParams beams;
  const ordered_json object = Written({.engine = &engine, .sampling = &sampling, .beams = &beams});
  for (const Setting& setting : SettingTable())
    EXPECT_TRUE(object.contains(std::string(setting.name))) << setting.name;
  EXPECT_EQ(object.size(), SettingTable().size() + 1);
  EXPECT_EQ(object["eviction"], true);
  EXPECT_EQ(object["max_cache_size"], 672);
  EXPECT_EQ(object["rotation"], "auto");
  EXPECT_EQ(object["recall_kv_type"], "auto");
  EXPECT_EQ(object["recall_gain"], 0.01);
}

// One setting at a time, each to something that is not its default.
TEST(SettingsJson, WhatIsWrittenIsReadBack) {
  for (const Setting& setting : SettingTable()) {
    if (setting.group == SettingGroup::kBeams) continue;  // nobody reads these from JSON
    ConfigDraft changed;
    SamplingParams sampling;
    const SettingsTarget target{.engine = &changed.config, .sampling = &sampling};
    if (const auto* choice = std::get_if<Choice>(&setting.place))
      SetValue(setting, std::string(choice->names.back()), target);
    else if (std::holds_alternative<std::int64_t>(DefaultOf(setting)))
      SetValue(setting, std::int64_t{1} << 40, target);
    else if (std::holds_alternative<std::uint64_t>(DefaultOf(setting)))
      SetValue(setting, UINT64_MAX, target);
    else if (std::holds_alternative<double>(DefaultOf(setting)))
      SetValue(setting, 1.0 / 3.0, target);
    else if (std::holds_alternative<std::string>(DefaultOf(setting)))
      SetValue(setting, std::string("a \"name\""), target);
    else
      SetValue(setting, std::vector<std::int64_t>{192, 224}, target);
    const json object = json::parse(Written({.engine = &changed.config}).dump());
    ConfigDraft draft;
    ReadEngineSettings(object, &draft);
    const json params = json::parse(Written({.sampling = &sampling}).dump());
    SamplingParams read;
    ReadSamplingSettings(params, &read);
    EXPECT_EQ(Written({.engine = &draft.config, .sampling = &read}),
              Written({.engine = &changed.config, .sampling = &sampling}))
        << setting.name;
  }
}

TEST(SettingsJson, WhatIsGivenIsNotedAndTheRestFollows) {
  ConfigDraft draft;
  ReadEngineSettings({{"max_cache_size", 512}, {"recall_limit", "64M"}}, &draft);
  const EngineConfig config = draft.Finished();
  EXPECT_FALSE(config.yields.max_cache_size);
  EXPECT_TRUE(config.yields.start_size);
  EXPECT_EQ(config.recall.limit_bytes, 64 << 20);
  EXPECT_EQ(config.recall.limit_tokens, 0);
  EXPECT_EQ(config.recall.blocks, kRecalledBlocks);
  ReadEngineSettings({{"eviction", false}}, &draft);
  EXPECT_FALSE(draft.Finished().eviction.has_value());
}

TEST(SettingsJson, SaysWhatCannotBeRead) {
  const auto problem = [](const json& object) -> std::string {
    try {
      ConfigDraft draft;
      ReadEngineSettings(object, &draft);
    } catch (const Error& error) {
      EXPECT_EQ(error.code(), ErrorCode::kInvalidArgument);
      return error.what();
    }
    return "";
  };
  EXPECT_EQ(problem(json::array()),
            "settings: are not a JSON object; write {\"name\": value, ...}");
  EXPECT_EQ(problem({{"max_cache_sise", 1}}),
            "max_cache_sise: is no such setting; did you mean max_cache_size?");
  EXPECT_EQ(problem({{"temperature", 1}}), "temperature: is no such setting; leave it out");
  EXPECT_EQ(problem({{"start_size", "64"}}), "start_size: \"64\" is not a whole number");
  EXPECT_EQ(problem({{"start_size", 1.5}}), "start_size: 1.5 is not a whole number");
  EXPECT_EQ(problem({{"start_size", UINT64_MAX}}),
            "start_size: 18446744073709551615 is not a whole number");
  EXPECT_EQ(problem({{"budget_floor", true}}), "budget_floor: true is not a number");
  EXPECT_EQ(problem({{"policy", 3}}), "policy: 3 is not a text");
  EXPECT_EQ(problem({{"policy_seed", -1}}),
            "policy_seed: -1 is not a whole number from 0 to 2^64 - 1");
  EXPECT_EQ(problem({{"rotation", "left"}}),
            "rotation: \"left\" is not one of auto, query, keys, off");
  EXPECT_EQ(problem({{"layer_max_cache_size", 3}}),
            "layer_max_cache_size: 3 is not an array of whole numbers");
  EXPECT_EQ(problem({{"layer_max_cache_size", {3, "a"}}}),
            "layer_max_cache_size: \"a\" is not a whole number");
  EXPECT_EQ(problem({{"eviction", 1}}), "eviction: 1 is not true or false");
  SamplingParams params;
  EXPECT_THROW(ReadSamplingSettings({{"start_size", 32}}, &params), Error);
}

}  // namespace
}  // namespace carousel
