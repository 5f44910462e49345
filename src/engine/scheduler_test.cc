// SPDX-License-Identifier: Apache-2.0
#include "engine/scheduler.h"

#include <gtest/gtest.h>

#include <algorithm>
#include <map>

#include "testing/random_draws.h"

namespace carousel {
namespace {

TEST(ChooseRunning, AnswersMoveBesideOneChunk) {
  const std::vector<Runnable> running = {{.rows = 30, .is_prompt = true, .last_step = 4},
                                         {.rows = 1, .is_prompt = false, .last_step = 7},
                                         {.rows = 32, .is_prompt = true, .last_step = 2},
                                         {.rows = 1, .is_prompt = false, .last_step = 7}};
  EXPECT_EQ(ChooseRunning(running, 34), (std::vector<std::size_t>{1, 2, 3}));
  EXPECT_EQ(ChooseRunning(running, 63), (std::vector<std::size_t>{1, 2, 3}));
  EXPECT_EQ(ChooseRunning(running, 64), (std::vector<std::size_t>{0, 1, 2, 3}));
}

// A small chunk that would fit does not overtake a large one that does not.
TEST(ChooseRunning, NobodyIsOvertaken) {
  const std::vector<Runnable> running = {{.rows = 32, .is_prompt = true, .last_step = 1},
                                         {.rows = 32, .is_prompt = true, .last_step = 2},
                                         {.rows = 2, .is_prompt = true, .last_step = 3}};
  EXPECT_EQ(ChooseRunning(running, 40), (std::vector<std::size_t>{0}));
}

TEST(ChooseOne, TakesTurns) {
  const std::vector<Runnable> running = {{.rows = 8, .is_prompt = true, .last_step = 3},
                                         {.rows = 1, .is_prompt = false, .last_step = 2}};
  EXPECT_EQ(ChooseOne(running), (std::vector<std::size_t>{1}));
}

// Random loads: each answer moves in every step, each of P prompts at least every P-th step, and
// the rows stay within their limit.
TEST(ChooseRunning, KeepsItsPromises) {
  constexpr std::int64_t kChunk = 32;
  constexpr std::int64_t kMostRunning = 8;
  constexpr std::int64_t kRows = kChunk + kMostRunning;
  Generator generator(5);
  struct Load {
    std::int64_t name;
    std::int64_t prompt;  // tokens left
    std::int64_t answer;  // likewise
    std::int64_t last_step;
    std::int64_t most_beside = 0;  // most prompts at once since it moved last, itself among them
  };
  std::vector<Load> running;
  std::int64_t names = 0;
  std::int64_t longest_wait = 0;
  for (std::int64_t step = 1; step <= 20000; ++step) {
    while (std::ssize(running) < kMostRunning && Pick(&generator, 0, 3) > 0) {
      running.push_back({.name = names++,
                         .prompt = Pick(&generator, 1, 200),
                         .answer = Pick(&generator, 0, 20),
                         .last_step = step - 1});
    }
    if (running.empty()) continue;
    std::vector<Runnable> runnable;
    for (const Load& load : running) {
      runnable.push_back({.rows = load.prompt > 0 ? std::min(load.prompt, kChunk) : 1,
                          .is_prompt = load.prompt > 0,
                          .last_step = load.last_step});
    }
    const auto prompts = std::count_if(running.begin(), running.end(),
                                       [](const Load& load) { return load.prompt > 0; });
    const auto chosen = ChooseRunning(runnable, kRows);
    std::int64_t rows = 0;
    for (std::size_t i = 0; i < running.size(); ++i) {
      Load& load = running[i];
      load.most_beside = std::max<std::int64_t>(load.most_beside, prompts);
      const bool moves = std::find(chosen.begin(), chosen.end(), i) != chosen.end();
      if (!moves) {
        ASSERT_TRUE(runnable[i].is_prompt) << "an answer did not move in step " << step;
        const std::int64_t wait = step - load.last_step;
        longest_wait = std::max(longest_wait, wait);
        ASSERT_LT(wait, load.most_beside);
        continue;
      }
      rows += runnable[i].rows;
      load.last_step = step;
      load.most_beside = 0;
      (load.prompt > 0 ? load.prompt : load.answer) -= runnable[i].rows;
    }
    ASSERT_LE(rows, kRows);
    std::erase_if(running, [](const Load& load) { return load.prompt <= 0 && load.answer <= 0; });
  }
  EXPECT_GT(longest_wait, 2);  // or nobody ever had to wait
}

}  // namespace
}  // namespace carousel
