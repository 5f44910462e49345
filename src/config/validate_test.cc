// SPDX-License-Identifier: Apache-2.0
#include <gtest/gtest.h>

#include <cmath>
#include <functional>
#include <string>
#include <utility>

#include "carousel/beam_params.h"
#include "carousel/config.h"
#include "carousel/error.h"
#include "carousel/request.h"

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

TEST(ValidateSampling, NamesTheField) {
  const std::pair<std::string, SamplingParams> cases[] = {
      {"temperature", {.temperature = -1}},
      {"temperature", {.temperature = std::nan("")}},
      {"top_k", {.top_k = -1}},
      {"top_p", {.top_p = 0.0}},
      {"top_p", {.top_p = 1.1}},
      {"min_p", {.min_p = -0.1}},
      {"repetition_penalty", {.repetition_penalty = 0.0}},
      {"presence_penalty", {.presence_penalty = 3.0}},
      {"frequency_penalty", {.frequency_penalty = -3.0}},
      {"penalty_window", {.penalty_window = 0}},
      {"logprobs", {.logprobs = 21}},
  };
  for (const auto& [field, params] : cases) {
    try {
      Validate(params);
      ADD_FAILURE() << field << " was accepted";
    } catch (const Error& error) {
      EXPECT_EQ(error.field(), field);
    }
  }
  EXPECT_NO_THROW(Validate(SamplingParams{}));
}

std::string ProblemOf(const BeamParams& params) {
  try {
    Validate(params);
  } catch (const Error& error) {
    return error.what();
  }
  return "";
}

TEST(ValidateBeams, NamesFieldAndMend) {
  EXPECT_EQ(ProblemOf({}), "");
  EXPECT_EQ(ProblemOf({.num_beams = 6, .num_beam_groups = 3, .diversity_penalty = 0.1}), "");
  EXPECT_EQ(ProblemOf({.num_beams = 2, .num_beam_groups = 4}),
            "num_beam_groups: 4 is out of range with 2 of num_beams; use a number from 1 to 2, or "
            "more beams");
  EXPECT_EQ(ProblemOf({.num_beam_groups = 0}),
            "num_beam_groups: 0 is out of range with 1 of num_beams; use a number from 1 to 1, or "
            "more beams");
  EXPECT_EQ(ProblemOf({.num_beams = 7, .num_beam_groups = 2}),
            "num_beam_groups: 2 groups do not divide the 7 of num_beams evenly; use 6 or 8 beams");
  // 129 are too many.
  EXPECT_EQ(ProblemOf({.num_beams = 127, .num_beam_groups = 3}),
            "num_beam_groups: 3 groups do not divide the 127 of num_beams evenly; use 126 beams");
}

}  // namespace
}  // namespace carousel
