// SPDX-License-Identifier: Apache-2.0
// carousel evaluate over a tiny model.
#include <gtest/gtest.h>

#include <algorithm>
#include <cmath>
#include <cstring>
#include <nlohmann/json.hpp>
#include <numeric>
#include <sstream>
#include <vector>

#include "testing/tiny_backend.h"

namespace carousel {
namespace {

using nlohmann::json;

class EvaluateTest : public ProgramTest {
 protected:
  // The lines of a run over `tasks`, the summary last.
  std::vector<json> Evaluate(const std::string& tasks, const std::vector<std::string>& more = {}) {
    std::vector<std::string> arguments = {"evaluate", "--tasks", Put("tasks.jsonl", tasks)};
    arguments.insert(arguments.end(), more.begin(), more.end());
    const ProgramResult result = Run(arguments);
    EXPECT_EQ(result.status, 0) << result.err;
    EXPECT_EQ(result.err, "");
    std::vector<json> lines;
    std::istringstream stream(result.out);
    for (std::string line; std::getline(stream, line);) lines.push_back(json::parse(line));
    return lines;
  }

  std::string Failure(const std::string& tasks, int status) {
    const ProgramResult result = Run({"evaluate", "--tasks", Put("tasks.jsonl", tasks)});
    EXPECT_EQ(result.status, status);
    EXPECT_EQ(result.out, "");
    return result.err;
  }

  std::vector<float> Rows(const std::string& name) const {
    const std::string bytes = Get(name);
    std::vector<float> rows(bytes.size() / sizeof(float));
    std::memcpy(rows.data(), bytes.data(), rows.size() * sizeof(float));
    return rows;
  }
};

std::string Numbers(int count) {
  std::string text;
  for (int i = 0; i < count; ++i) text += std::to_string(i * 7) + " ";
  return text;
}

TEST_F(EvaluateTest, AConversationDoesNotDependOnTheOnesBeforeIt) {
  const std::string task = R"({"id": "x", "raw": true, "turns": [{"prompt": ")" + Numbers(100) +
                           R"(", "max_new_tokens": 9}, {"prompt": "more", "max_new_tokens": 5}]})";
  const auto lines = Evaluate(task + "\n" + task);
  ASSERT_EQ(lines.size(), 5U);
  EXPECT_EQ(lines[0]["token_ids"].size(), 9U);
  EXPECT_EQ(lines[0]["finish_reason"], "length");
  for (const std::size_t turn : {0U, 1U}) {
    EXPECT_EQ(lines[turn]["turn"], turn);
    for (const char* key : {"token_ids", "text", "nll", "prompt_tokens", "peak_cache_bytes"})
      EXPECT_EQ(lines[turn][key], lines[turn + 2][key]) << key;
  }
  EXPECT_EQ(lines[4]["type"], "summary");
  EXPECT_EQ(lines[4]["turns"], 4);
  EXPECT_EQ(lines[4]["rotation"], "query");
}

TEST_F(EvaluateTest, APinnedTurnStays) {
  const auto task = [](bool pin) {
    return R"({"id": "x", "raw": true, "turns": [{"prompt": "a secret and a few words beside it",)"
           R"( "max_new_tokens": 0, "pin": )" +
           std::string(pin ? "true" : "false") + R"(}, {"prompt": ")" + Numbers(150) +
           R"(", "score": "a secret"}]})";
  };
  const std::vector<std::string> small = {"--start-size",     "8",  "--recent-size", "8",
                                          "--max-cache-size", "64", "--chunk",       "16",
                                          "--block-size",     "8",  "--policy",      "window"};
  EXPECT_NE(Evaluate(task(true), small)[1]["nll"], Evaluate(task(false), small)[1]["nll"]);
  const std::string bad = Failure(R"({"id": 1, "turns": [{"prompt": "x", "pin": 1}]})", 2);
  EXPECT_NE(bad.find("\"pin\" must be true or false"), std::string::npos) << bad;
}

TEST_F(EvaluateTest, PeakBytesAreThePoolsAndEvictionRunsBetweenTurns) {
  const std::string task = R"({"id": 1, "raw": true, "turns": [{"prompt": ")" + Numbers(150) +
                           R"(", "max_new_tokens": 0}, {"prompt": "more", "max_new_tokens": 3}]})";
  const std::vector<std::string> small = {"--start-size",     "32",  "--recent-size", "32",
                                          "--max-cache-size", "128", "--chunk",       "64"};
  const auto whole = Evaluate(task, {"--no-eviction"});
  const auto capped = Evaluate(task, small);
  auto late = small;
  late.insert(late.end(), {"--prompt-eviction", "at_end"});
  const auto at_end = Evaluate(task, late);
  const std::int64_t per_token = whole.back()["cache_bytes_per_token"];
  const std::int64_t prompt = whole[0]["prompt_tokens"];
  ASSERT_GT(prompt, 500);
  EXPECT_EQ(whole[0]["evicted_tokens"], 0);
  EXPECT_EQ(whole[0]["token_ids"].size(), 0U);
  EXPECT_GE(whole[0]["peak_cache_bytes"], prompt * per_token);
  EXPECT_LE(capped[0]["peak_cache_bytes"], (128 + 64) * per_token);
  EXPECT_LE(capped[0]["peak_resident_tokens"], 128 + 64);
  EXPECT_GT(capped[0]["evicted_tokens"], 300);
  EXPECT_GE(capped[1]["evicted_tokens"], capped[0]["evicted_tokens"]);
  EXPECT_EQ(at_end[0]["peak_cache_bytes"], whole[0]["peak_cache_bytes"]);
  EXPECT_LE(at_end[1]["resident_tokens"], 128);
}

TEST_F(EvaluateTest, WhatIsKeptForRecallIsCountedApart) {
  const std::string task = R"({"id": 1, "raw": true, "turns": [{"prompt": ")" + Numbers(150) +
                           R"(", "max_new_tokens": 2}]})";
  std::vector<std::string> small = {"--start-size",     "32",  "--recent-size", "32",
                                    "--max-cache-size", "128", "--chunk",       "64"};
  auto recalling = small;
  small.insert(small.end(), {"--recall-blocks", "0"});
  recalling.insert(recalling.end(), {"--recall-blocks", "2"});
  const auto without = Evaluate(task, small);
  const auto with = Evaluate(task, recalling);
  EXPECT_EQ(without[0]["peak_recall_bytes"], 0);
  EXPECT_EQ(with[0]["peak_cache_bytes"], without[0]["peak_cache_bytes"]);
  EXPECT_GT(with[0]["peak_recall_bytes"], 0);
  EXPECT_EQ(with[0]["peak_recall_bytes"], with.back()["recall_bytes"]);
}

TEST_F(EvaluateTest, AScoredAnswerIsWhatWasGivenAndItsDistributionsAreWritten) {
  const std::string turns = R"("raw": true, "turns": [{"prompt": "Going over the hill", )";
  const auto free = Evaluate(R"({"id": 1, )" + turns + R"("max_new_tokens": 4}]})");
  const json answer = free[0]["token_ids"];
  ASSERT_EQ(answer.size(), 4U);
  const auto forced = Evaluate(R"({"id": 1, )" + turns + R"("score": "bcd"}]})" + "\n" +
                                   R"({"id": 2, )" + turns + R"("score": )" + answer.dump() + "}]}",
                               {"--logits", Path("rows")});
  EXPECT_EQ(forced[0]["token_ids"], (json{'b', 'c', 'd'}));
  EXPECT_EQ(forced[0]["logits_row"], 0);
  EXPECT_EQ(forced[1]["logits_row"], 3);
  // Forcing what the model would say changes nothing.
  EXPECT_EQ(forced[1]["token_ids"], answer);
  EXPECT_EQ(forced[1]["likeliest"], answer);
  EXPECT_EQ(forced[1]["nll"], free[0]["nll"]);
  const std::vector<float> rows = Rows("rows");
  const std::size_t vocabulary = forced.back()["vocabulary_size"];
  ASSERT_EQ(rows.size(), 7 * vocabulary);
  for (std::size_t row = 0; row < 7; ++row) {
    double sum = 0;
    for (std::size_t i = 0; i < vocabulary; ++i) sum += std::exp(rows[row * vocabulary + i]);
    EXPECT_NEAR(sum, 1.0, 1e-5);
    const json& line = forced[row < 3 ? 0 : 1];
    const std::size_t place = row < 3 ? row : row - 3;
    const std::size_t token = line["token_ids"][place];
    EXPECT_NEAR(rows[row * vocabulary + token], -line["nll"][place].get<double>(), 1e-6);
  }
}

TEST_F(EvaluateTest, AScoredAnswerIsOfTheConversation) {
  const auto task = [](const std::string& answer) {
    return R"({"id": 1, "raw": true, "turns": [{"prompt": "abc", "score": ")" + answer +
           R"("}, {"prompt": "xyz", "max_new_tokens": 2}]})";
  };
  // The last token of an answer is read with what comes next.
  const auto joined = Evaluate(
      R"({"id": 1, "raw": true, "turns": [{"prompt": "abcdefxyz", "max_new_tokens": 2}]})");
  // Steps of other sizes add in another order.
  const std::vector<double> of_all = joined[0]["nll"];
  const std::vector<double> same = Evaluate(task("def"))[1]["nll"];
  const std::vector<double> other = Evaluate(task("dxf"))[1]["nll"];
  ASSERT_EQ(same.size(), of_all.size());
  ASSERT_EQ(other.size(), of_all.size());
  double difference = 0.0;
  for (std::size_t i = 0; i < of_all.size(); ++i) {
    EXPECT_NEAR(same[i], of_all[i], 1e-5);
    difference = std::max(difference, std::abs(other[i] - of_all[i]));
  }
  EXPECT_GT(difference, 1e-3);
}

TEST_F(EvaluateTest, PromptTokensAreScored) {
  const auto lines = Evaluate(
      R"({"id": 1, "raw": true, "turns": [{"prompt": [65, 66, 67, 68], "score_prompt": true,)"
      R"( "max_new_tokens": 0}]})");
  ASSERT_EQ(lines[0]["prompt_nll"].size(), 3U);
  for (const json& nll : lines[0]["prompt_nll"]) EXPECT_GT(nll.get<double>(), 0.0);
  const auto forced =
      Evaluate(R"({"id": 1, "raw": true, "turns": [{"prompt": [65], "score": [66, 67, 68]}]})");
  for (std::size_t i = 0; i < 3; ++i)
    EXPECT_NEAR(lines[0]["prompt_nll"][i].get<double>(), forced[0]["nll"][i].get<double>(), 1e-3);
}

TEST_F(EvaluateTest, TurnsAreOfTheChatUnlessRaw) {
  const std::string turns = R"("turns": [{"prompt": "hi", "max_new_tokens": 0}, )"
                            R"({"prompt": "ho", "max_new_tokens": 0}]})";
  EXPECT_NE(Failure(R"({"id": 1, )" + turns, 1).find("\"raw\": true"), std::string::npos);
  Put("turn_format.json", kTinyTurnFormat);
  const auto chat = Evaluate(R"({"id": 1, )" + turns);
  EXPECT_EQ(chat[0]["prompt_tokens"], 5);  // "Uhi\nA"
  EXPECT_EQ(chat[1]["prompt_tokens"], 9);  // "<e>\nUho\nA" without "<e>..."
  EXPECT_EQ(chat[0]["logical_tokens"], 5);
  const auto raw = Evaluate(R"({"id": 1, "raw": true, )" + turns);
  EXPECT_EQ(raw[0]["prompt_tokens"], 3);  // behind the special token
  EXPECT_EQ(raw[1]["prompt_tokens"], 2);
}

TEST_F(EvaluateTest, RefusesWhatItCannotRun) {
  EXPECT_EQ(Failure("{}", 2), "carousel: --tasks: line 1: \"id\" is missing\n");
  EXPECT_EQ(backend_.models_loaded, 0);
  EXPECT_NE(Failure(R"({"id": "q", "raw": true, "turns": [{"prompt": [999]}]})", 2)
                .find("--tasks: line 1, turn 1: \"prompt\": token 999 is outside"),
            std::string::npos);
  EXPECT_NE(Failure("\n"
                    R"({"id": "q", "raw": true, "turns": [{"prompt": [9], "score": [999]}]})",
                    2)
                .find("--tasks: line 2, turn 1: \"score\": token 999 is outside"),
            std::string::npos);
  EXPECT_EQ(
      Failure(R"({"id": "q", "turns": [{"prompt": "a", "max_new_tokens": -2}]})", 2),
      "carousel: --tasks: line 1, turn 1: \"max_new_tokens\" is -2; use a whole number of 0 or "
      "more\n");
  EXPECT_EQ(Failure(R"({"id": "q", "turns": [{"prompt": "a", "new_tokens": 2}]})", 2),
            "carousel: --tasks: line 1, turn 1: \"new_tokens\" is unknown; known are \"prompt\", "
            "\"max_new_tokens\", \"score\", \"score_prompt\", \"pin\"\n");
  const std::string pinned = R"({"id": "q", "raw": true, "turns": [{"prompt": ")" +
                             std::string(900, 'x') + R"(", "pin": true}]})";
  EXPECT_EQ(Failure(pinned, 2).rfind("carousel: --tasks: line 1, turn 1: \"pin\": 896 tokens", 0),
            0U)
      << Failure(pinned, 2);
  const std::string tasks = Put("t", R"({"id": 1, "raw": true, "turns": [{"prompt": "a"}]})");
  const ProgramResult full = Run({"evaluate", "--tasks",
                                  Put("s", R"({"id": 1, "raw": true, "turns": [{"prompt": "a",)"
                                           R"( "score": "b"}]})"),
                                  "--logits", "/dev/full"});
  EXPECT_EQ(full.status, 1);
  EXPECT_EQ(full.err, "carousel: --logits: cannot write /dev/full: No space left on device\n");
  const ProgramResult nowhere = Run({"evaluate", "--tasks", tasks, "--logits", "/no/file"});
  EXPECT_EQ(nowhere.err, "carousel: --logits: cannot write /no/file: No such file or directory\n");
}

// Lines say where a row of logits is, so that neither is to be of another run.
TEST_F(EvaluateTest, ARunThatFailsLeavesNothingOfAnotherOne) {
  Put("rows", std::string(64, 'x'));
  Put("out", "{\"type\":\"summary\"}\n");
  const std::string bad =
      R"({"id": 1, "raw": true, "turns": [{"prompt": [1000000], "score": [1]}]})";
  const ProgramResult result = Run(
      {"evaluate", "--tasks", Put("tasks", bad), "--logits", Path("rows"), "--json", Path("out")});
  EXPECT_NE(result.status, 0);
  EXPECT_NE(result.err, "");
  EXPECT_EQ(Get("rows"), "");
  EXPECT_EQ(Get("out"), "");
}

TEST_F(EvaluateTest, ARunThatScoresNothingLeavesNoRowsOfAnotherOne) {
  Put("rows", std::string(64, 'x'));
  Evaluate(R"({"id": 1, "raw": true, "turns": [{"prompt": "hi", "max_new_tokens": 1}]})",
           {"--logits", Path("rows")});
  EXPECT_EQ(Get("rows"), "");
}

}  // namespace
}  // namespace carousel
