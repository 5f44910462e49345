// SPDX-License-Identifier: Apache-2.0
// The policy of docs/add-a-policy.md: what the page shows is what compiles, and it works.
#include "examples/peak_policy.h"

#include <gtest/gtest.h>

#include <algorithm>
#include <fstream>
#include <iterator>
#include <string>

#include "carousel/error.h"
#include "carousel/single_sequence_engine.h"
#include "engine/tiny_model.h"

namespace carousel {
namespace {

std::string FileText(const std::string& path) {
  std::ifstream file(std::string(CAROUSEL_SOURCE_DIR) + "/" + path);
  return {std::istreambuf_iterator<char>(file), {}};
}

TEST(AddAPolicy, ThePageShowsTheFileAndTheFileIsShort) {
  const std::string code = FileText("tests/examples/peak_policy.cc");
  ASSERT_FALSE(code.empty());
  EXPECT_NE(FileText("docs/add-a-policy.md").find("```cpp\n" + code + "```\n"), std::string::npos);
  EXPECT_LT(std::count(code.begin(), code.end(), '\n'), 50);
}

TEST(AddAPolicy, OneLineRegistersItAndTheEngineRunsIt) {
  RegisterPolicy(PeakPolicy());
  EXPECT_THROW(RegisterPolicy(PeakPolicy()), Error);
  EngineConfig config;
  config.cache.block_size = 8;
  config.chunk_size = 32;
  config.eviction =
      EvictionConfig{.start_size = 8, .recent_size = 16, .max_cache_size = 64, .policy = "peak"};
  const auto engine =
      SingleSequenceEngine::Create(std::make_unique<TinyModel>(TinyModelOptions{}), config);
  std::vector<TokenId> prompt;
  for (int i = 0; i < 300; ++i) prompt.push_back(i * i % 61);
  engine->Submit({.prompt = prompt, .max_new_tokens = 20, .ignore_end_tokens = true});
  while (engine->HasWork()) engine->Step();
  EXPECT_LE(engine->metrics().resident_tokens, 64);
  EXPECT_EQ(engine->metrics().logical_tokens, 319);
}

TEST(AddAPolicy, TheHighestPeakStays) {
  const BlockShape shape{.block_size = 2, .kv_heads = 1, .key_dim = 1, .value_dim = 1};
  const EvictionConfig config;
  const LayerRope rope;
  const auto policy = PeakPolicy().make({.config = config, .shape = shape, .rope = rope});
  const std::vector<TableEntry> entries(3, {.tokens = 2});
  const std::vector<float> early = {0.9F, 0.0F, 0.2F, 0.2F, 0.3F, 0.0F};
  const std::vector<float> late = {0.0F, 0.0F, 0.4F, 0.4F, 0.3F, 0.0F};
  policy->Observe({.entries = entries, .counted_queries = 1, .token_mass = early});
  policy->Observe({.entries = entries, .counted_queries = 1, .token_mass = late});
  const std::vector<std::int64_t> all = {0, 1, 2};
  EXPECT_EQ(policy->Choose({.entries = entries, .candidates = all}, 1),
            (std::vector<std::int64_t>{2}));
  EXPECT_EQ(policy->Choose({.entries = entries, .candidates = all}, 2),
            (std::vector<std::int64_t>{1, 2}));
}

}  // namespace
}  // namespace carousel
