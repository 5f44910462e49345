// SPDX-License-Identifier: Apache-2.0
#include "cli/evaluation_tasks.h"

#include <gtest/gtest.h>

#include "carousel/error.h"

namespace carousel {
namespace {

std::string Problem(const std::string& text) {
  try {
    ParseEvaluationTasks(text);
  } catch (const Error& error) {
    EXPECT_EQ(error.code(), ErrorCode::kInvalidArgument);
    EXPECT_EQ(error.field(), "tasks");
    return error.problem();
  }
  return "";
}

TEST(EvaluationTasks, ReadsEveryMember) {
  const auto tasks = ParseEvaluationTasks(
      R"({"id": "a", "turns": [{"prompt": "x", "max_new_tokens": 0, "score_prompt": true},)"
      R"( {"prompt": [3, 4], "score": "y"}]})"
      "\n\r\n"
      R"({"id": 7, "raw": true, "turns": [{"prompt": "z", "score": [5]}]})");
  ASSERT_EQ(tasks.size(), 2U);
  EXPECT_EQ(tasks[0].id, "a");
  EXPECT_FALSE(tasks[0].raw);
  ASSERT_EQ(tasks[0].turns.size(), 2U);
  EXPECT_EQ(std::get<std::string>(tasks[0].turns[0].prompt), "x");
  EXPECT_EQ(tasks[0].turns[0].max_new_tokens, 0);
  EXPECT_TRUE(tasks[0].turns[0].score_prompt);
  EXPECT_FALSE(tasks[0].turns[0].score);
  EXPECT_EQ(std::get<std::vector<TokenId>>(tasks[0].turns[1].prompt), (std::vector<TokenId>{3, 4}));
  EXPECT_EQ(std::get<std::string>(*tasks[0].turns[1].score), "y");
  EXPECT_FALSE(tasks[0].turns[1].max_new_tokens);
  EXPECT_EQ(tasks[1].id, "7");
  EXPECT_EQ(tasks[1].line, 3);
  EXPECT_TRUE(tasks[1].raw);
  EXPECT_EQ(std::get<std::vector<TokenId>>(*tasks[1].turns[0].score), std::vector<TokenId>{5});
}

TEST(EvaluationTasks, NamesLineAndMemberOfWhatCannotBe) {
  const auto turn = [](const std::string& members) {
    return "{\"id\": 1, \"turns\": [{\"prompt\": \"a\"}, {" + members + "}]}";
  };
  EXPECT_EQ(Problem("\n \n"), "holds no conversation; give one JSON object a line");
  EXPECT_EQ(Problem(turn("\"prompt\": \"b\"") + "\nnonsense"), "line 2: is not a JSON object");
  EXPECT_EQ(Problem(R"({"turns": [{"prompt": "a"}]})"), "line 1: \"id\" is missing");
  EXPECT_EQ(Problem(R"({"id": 1, "turns": []})"),
            "line 1: \"turns\" must be an array with at least one turn");
  EXPECT_EQ(Problem(R"({"id": 1, "rwa": true, "turns": [{"prompt": "a"}]})"),
            "line 1: \"rwa\" is unknown; known are \"id\", \"raw\", \"turns\"");
  EXPECT_EQ(Problem(turn("\"score\": \"b\"")), "line 1, turn 2: \"prompt\" is missing");
  EXPECT_EQ(Problem(turn(R"("prompt": "b", "score": 4)")),
            "line 1, turn 2: \"score\" must be a text or an array of token ids");
  EXPECT_EQ(Problem(turn(R"("prompt": "b", "score": "")")),
            "line 1, turn 2: \"score\" is empty; give some text");
  EXPECT_EQ(Problem(turn(R"("prompt": "b\u0000")")),
            "line 1, turn 2: \"prompt\" contains NUL; leave it out");
  EXPECT_NE(Problem(turn(R"("prompt": [1, -1])")).find("line 1, turn 2: -1 is not a token id"),
            std::string::npos);
  EXPECT_EQ(Problem(turn(R"("prompt": "b", "max_new_tokens": -2)")),
            "line 1, turn 2: \"max_new_tokens\" is -2; use a whole number of 0 or more");
  EXPECT_NE(Problem(turn(R"("prompt": "b", "max_new_tokens": 2, "score": "c")")).find("leave out"),
            std::string::npos);
  EXPECT_EQ(Problem(turn(R"("prompt": "b", "score_prompt": 1)")),
            "line 1, turn 2: \"score_prompt\" must be true or false");
}

}  // namespace
}  // namespace carousel
