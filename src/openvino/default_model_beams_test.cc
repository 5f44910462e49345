// SPDX-License-Identifier: Apache-2.0
// Beam search over the default model.
#include <gtest/gtest.h>

#include <filesystem>
#include <memory>
#include <string>
#include <vector>

#include "carousel/beam_search.h"
#include "carousel/defaults.h"
#include "openvino/openvino_model.h"
#include "openvino/openvino_tokenizer.h"
#include "testing/default_model.h"

namespace carousel {
namespace {

using ::carousel::testing::DefaultModelDirectory;

constexpr std::int64_t kTokens = 24;

class DefaultModelBeamsTest : public ::testing::Test {
 protected:
  void SetUp() override {
    if (!std::filesystem::exists(DefaultModelDirectory()))
      GTEST_SKIP() << "there is no model at " << DefaultModelDirectory();
  }

  static std::unique_ptr<Engine> Create(const EngineConfig& config) {
    return Engine::Create(LoadOpenVinoModel({.directory = DefaultModelDirectory()}), config);
  }

  // All answers are of one length, so that their sums can be compared.
  static Request Asking(const Engine& engine, const std::string& text) {
    const auto tokenizer =
        LoadOpenVinoTokenizer(DefaultModelDirectory(), engine.model().spec().vocabulary_size);
    return {.prompt = tokenizer->Encode(text, {}),
            .max_new_tokens = kTokens,
            .ignore_end_tokens = true};
  }
};

TEST_F(DefaultModelBeamsTest, FourBeamsFindNothingWorseThanOne) {
  const auto engine = Create(DefaultEngineConfig());
  for (const char* text : {"The capital of France is", "Once upon a time there was a"}) {
    const Request request = Asking(*engine, text);
    const auto greedy = SearchBeams(engine.get(), engine->Open(), request, {});
    const auto best = SearchBeams(engine.get(), engine->Open(), request,
                                  {.num_beams = 4, .num_return_sequences = 4});
    ASSERT_EQ(greedy.size(), std::size_t{1});
    ASSERT_EQ(best.size(), std::size_t{4});
    // Four rows round otherwise than one.
    EXPECT_GE(best[0].sum, greedy[0].sum - 1e-3) << text;
    for (std::size_t i = 1; i < best.size(); ++i) {
      EXPECT_LE(best[i].score, best[i - 1].score);
      EXPECT_NE(best[i].tokens, best[i - 1].tokens);
    }
  }
  EXPECT_EQ(engine->metrics().cache_bytes, 0);
}

TEST_F(DefaultModelBeamsTest, EvictsWhileItSearches) {
  EngineConfig config = DefaultEngineConfig();
  config.eviction->start_size = 32;
  config.eviction->recent_size = 32;
  config.eviction->max_cache_size = 128;
  const auto engine = Create(config);
  std::string text;
  for (int i = 0; i < 60; ++i) text += "Item " + std::to_string(i) + " is in the list. ";
  Request request = Asking(*engine, text);
  request.max_new_tokens = 80;  // more than two blocks
  const auto search = BeamSearch::Start(engine.get(), engine->Open(), request,
                                        {.num_beams = 4, .num_return_sequences = 4});
  while (search->HasWork()) {
    for (StepOutput& output : engine->Step()) search->Take(std::move(output));
  }
  ASSERT_EQ(search->answers().size(), std::size_t{4});
  for (const BeamAnswer& answer : search->answers()) EXPECT_EQ(std::ssize(answer.tokens), 80);
  EXPECT_GT(search->metrics().evicted_tokens, std::ssize(request.prompt) - 128);
  EXPECT_LE(search->metrics().resident_tokens, 128 + config.cache.block_size);
  EXPECT_EQ(engine->metrics().cache_bytes, 0);
}

}  // namespace
}  // namespace carousel
