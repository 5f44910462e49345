// SPDX-License-Identifier: Apache-2.0
#include "carousel/config.h"

#include <gtest/gtest.h>

#include <functional>
#include <string>

#include "carousel/error.h"

namespace carousel {
namespace {

struct BadConfig {
  std::string field;
  std::string mend;  // part of the message
  std::function<void(EngineConfig*)> break_it;
};

TEST(Validate, NamesFieldAndMend) {
  const BadConfig cases[] = {
      {"block_size", "least is 8", [](EngineConfig* c) { c->cache.block_size = 0; }},
      {"block_size", "use 24 or 32", [](EngineConfig* c) { c->cache.block_size = 31; }},
      {"block_size", "most is 256", [](EngineConfig* c) { c->cache.block_size = 1024; }},
      {"start_size", "use 32 or 64", [](EngineConfig* c) { c->eviction->start_size = 33; }},
      {"start_size", "use 32", [](EngineConfig* c) { c->eviction->start_size = 5; }},
      {"start_size", "too small", [](EngineConfig* c) { c->eviction->start_size = 0; }},
      {"recent_size", "too small", [](EngineConfig* c) { c->eviction->recent_size = -32; }},
      {"max_cache_size", "use 480 or 512",
       [](EngineConfig* c) { c->eviction->max_cache_size = 500; }},
      {"max_cache_size", "at least 192",
       [](EngineConfig* c) { c->eviction->max_cache_size = 160; }},
      {"max_cache_size", "too large",
       [](EngineConfig* c) { c->eviction->max_cache_size = INT64_MAX; }},
      {"layer_max_cache_size", "at least 192",
       [](EngineConfig* c) {
         c->eviction->layer_max_cache_size = {672, 64};
       }},
      {"snapkv_window", "too small", [](EngineConfig* c) { c->eviction->snapkv_window = -1; }},
      {"pooling_width", "use 3 or 5", [](EngineConfig* c) { c->eviction->pooling_width = 4; }},
      {"chunk_size", "least is 32", [](EngineConfig* c) { c->chunk_size = 31; }},
      {"limit_bytes", "too small", [](EngineConfig* c) { c->cache.limit_bytes = -1; }},
  };
  for (const BadConfig& bad : cases) {
    EngineConfig config;
    bad.break_it(&config);
    try {
      Validate(config);
      ADD_FAILURE() << bad.field << " was accepted";
    } catch (const Error& error) {
      EXPECT_EQ(error.field(), bad.field);
      EXPECT_EQ(error.code(), ErrorCode::kInvalidArgument);
      EXPECT_NE(error.problem().find(bad.mend), std::string::npos) << error.what();
    }
  }
}

TEST(Validate, AcceptsTheDefaultsAndNoEviction) {
  EXPECT_NO_THROW(Validate(EngineConfig{}));
  EngineConfig config;
  config.eviction.reset();
  EXPECT_NO_THROW(Validate(config));
}

TEST(Names, RoundTrip) {
  for (const Rotation value :
       {Rotation::kAuto, Rotation::kQuery, Rotation::kKeys, Rotation::kOff}) {
    EXPECT_EQ(ParseRotation(Name(value)), value);
  }
  for (const auto value :
       {PositionPolicy::kAuto, PositionPolicy::kKeep, PositionPolicy::kCompact}) {
    EXPECT_EQ(ParsePositionPolicy(Name(value)), value);
  }
  for (const auto value : {Grouping::kLayer, Grouping::kHead})
    EXPECT_EQ(ParseGrouping(Name(value)), value);
  for (const auto value : {Aggregation::kSum, Aggregation::kNormSum})
    EXPECT_EQ(ParseAggregation(Name(value)), value);
  for (const auto value : {PromptEviction::kCapped, PromptEviction::kAtEnd}) {
    EXPECT_EQ(ParsePromptEviction(Name(value)), value);
  }
  for (const auto value : {KvType::kF32, KvType::kF16}) EXPECT_EQ(ParseKvType(Name(value)), value);
  EXPECT_EQ(ParseRotation("querry"), std::nullopt);
  EXPECT_EQ(ParseKvType(""), std::nullopt);
}

}  // namespace
}  // namespace carousel
