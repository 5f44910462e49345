// SPDX-License-Identifier: Apache-2.0
#include "engine/recall_cadence.h"

#include <gtest/gtest.h>

#include <vector>

namespace carousel {
namespace {

// The steps of an answer of `steps` tokens in which a head chooses that gains `gain` each time.
std::vector<std::int64_t> Choices(const RecallConfig& config, double gain, std::int64_t steps) {
  RecallCadence cadence;
  cadence.BeginPrompt(config);
  std::vector<std::int64_t> chosen;
  for (std::int64_t step = 1; step <= steps; ++step) {
    if (!cadence.BeginAnswerStep()) continue;
    chosen.push_back(step);
    cadence.NoteAnswer(config, gain);
  }
  return chosen;
}

TEST(RecallCadence, AHeadThatGainsLittleChoosesHalfAsOftenDownToEvery) {
  const RecallConfig config{.every = 8, .least_gain = 0.1};
  EXPECT_EQ(Choices(config, 0.49, 40), (std::vector<std::int64_t>{2, 4, 8, 16, 24, 32, 40}));
  EXPECT_EQ(Choices(config, 0.51, 6), (std::vector<std::int64_t>{2, 3, 4, 5, 6}));
}

TEST(RecallCadence, OneGainMakesItAttentiveAgain) {
  const RecallConfig config{.every = 16, .least_gain = 0.1};
  RecallCadence cadence;
  cadence.BeginPrompt(config);
  std::vector<std::int64_t> chosen;
  for (std::int64_t step = 1; step <= 20; ++step) {
    if (!cadence.BeginAnswerStep()) continue;
    chosen.push_back(step);
    cadence.NoteAnswer(config, step == 8 ? 0.5 : 0.0);
  }
  EXPECT_EQ(chosen, (std::vector<std::int64_t>{2, 4, 8, 9, 11, 15}));
}

TEST(RecallCadence, EveryOneIsEachToken) {
  EXPECT_EQ(Choices({.every = 1, .least_gain = 1.0}, 0.0, 3), (std::vector<std::int64_t>{1, 2, 3}));
}

TEST(RecallCadence, ThePromptsChoiceHoldsForOneToken) {
  const RecallConfig config{.every = 16, .least_gain = 0.1};
  RecallCadence cadence;
  for (int prompt = 0; prompt < 2; ++prompt) {
    cadence.BeginPrompt(config);
    EXPECT_FALSE(cadence.BeginAnswerStep());
    EXPECT_TRUE(cadence.BeginAnswerStep());
    cadence.NoteAnswer(config, 0.0);
    EXPECT_FALSE(cadence.BeginAnswerStep());
  }
}

TEST(RecallCadence, MoreTokensOfAPromptShareAChoiceThatGainsLittle) {
  const RecallConfig config{.chunk = 16, .least_gain = 0.1};
  RecallCadence cadence;
  std::vector<std::int64_t> together;
  for (const double gain : {0.0, 0.0, 0.0, 0.2, 0.0}) {
    together.push_back(cadence.BeginPrompt(config));
    // The mean counts.
    cadence.NotePrompt(gain);
    cadence.NotePrompt(gain / 2);
  }
  together.push_back(cadence.BeginPrompt(config));
  // A step of one choice says nothing.
  together.push_back(cadence.BeginPrompt(config));
  EXPECT_EQ(together, (std::vector<std::int64_t>{16, 32, 64, 64, 16, 32, 32}));
}

}  // namespace
}  // namespace carousel
