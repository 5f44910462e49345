// SPDX-License-Identifier: Apache-2.0
// carousel batch over a tiny model.
#include <fcntl.h>
#include <gtest/gtest.h>
#include <sys/file.h>
#include <sys/stat.h>
#include <unistd.h>

#include <algorithm>
#include <filesystem>
#include <fstream>
#include <map>
#include <nlohmann/json.hpp>
#include <sstream>
#include <string>
#include <thread>
#include <vector>

#include "testing/tiny_backend.h"

namespace carousel {
namespace {

using nlohmann::json;

std::string Plain(const std::string& id, const std::string& prompt, const std::string& more = "") {
  return R"({"custom_id":")" + id + R"(","prompt":")" + prompt + R"(","max_tokens":6)" + more +
         "}\n";
}

class BatchTest : public ProgramTest {
 protected:
  ProgramResult Batch(const std::string& requests, const std::vector<std::string>& more = {}) {
    std::vector<std::string> arguments = {"batch", "--requests", Put("requests.jsonl", requests),
                                          "--out", Path("out.jsonl")};
    arguments.insert(arguments.end(), more.begin(), more.end());
    return Run(arguments);
  }

  // The lines that came out, by name.
  std::map<std::string, json> Lines() const {
    std::map<std::string, json> lines;
    std::istringstream stream(Get("out.jsonl"));
    for (std::string line; std::getline(stream, line);) {
      const json object = json::parse(line);
      const std::string id = object["custom_id"].is_null() ? "" : object["custom_id"];
      EXPECT_FALSE(lines.contains(id)) << "twice: " << line;
      lines[id] = object;
    }
    return lines;
  }
};

TEST_F(BatchTest, AnswersAsTheyAreAnsweredAlone) {
  std::string requests;
  std::map<std::string, std::string> prompts;
  for (int i = 0; i < 12; ++i) {
    std::string prompt;
    for (int word = 0; word < 5 + 9 * i; ++word) prompt += std::to_string(word * (i + 1)) + " ";
    prompts[std::to_string(i)] = prompt;
    requests += Plain(std::to_string(i), prompt);
  }
  const std::vector<std::string> small = {"--raw", "--max-cache-size", "96", "--recent-size",
                                          "32",    "--chunk",          "32", "--start-size",
                                          "32",    "--concurrency",    "5"};
  const ProgramResult result = Batch(requests, small);
  ASSERT_EQ(result.status, 0) << result.err;
  EXPECT_NE(result.err.find("12 answered, 0 failed"), std::string::npos) << result.err;
  const auto lines = Lines();
  ASSERT_EQ(lines.size(), prompts.size());
  bool evicted = false;
  for (const auto& [id, prompt] : prompts) {
    const ProgramResult alone = Run({"generate", "--raw", "--prompt", prompt, "--max-new-tokens",
                                     "6", "--json", "-", "--max-cache-size", "96", "--recent-size",
                                     "32", "--chunk", "32", "--start-size", "32"});
    ASSERT_EQ(alone.status, 0) << alone.err;
    const json expected = json::parse(alone.out);
    const json& line = lines.at(id);
    EXPECT_EQ(line["text"], expected["text"]);
    EXPECT_EQ(line["finish_reason"], expected["finish_reason"]);
    EXPECT_EQ(line["usage"]["prompt_tokens"], expected["prompt_tokens"]);
    EXPECT_EQ(line["usage"]["completion_tokens"], expected["new_tokens"]);
    EXPECT_EQ(line["kv"]["evicted_tokens"], expected["evicted_tokens"]);
    evicted = evicted || line["kv"]["evicted_tokens"] > 0;
  }
  EXPECT_TRUE(evicted);
}

TEST_F(BatchTest, BadLinesAreErrorsAndNoEnd) {
  const ProgramResult result =
      Batch("{\n" + Plain("a", "1 2 3") + "\n" + Plain("b", "x", R"(,"temperature":-1)") +
                R"({"custom_id":"c","prompt":[99999]})" + "\n" + Plain("d", "4 5"),
            {"--raw"});
  EXPECT_EQ(result.status, 0) << result.err;
  EXPECT_NE(result.err.find("2 answered, 3 failed"), std::string::npos) << result.err;
  const auto lines = Lines();
  ASSERT_EQ(lines.size(), std::size_t{5});
  EXPECT_TRUE(lines.at("a").contains("text"));
  EXPECT_TRUE(lines.at("d").contains("text"));
  EXPECT_EQ(lines.at("")["error"]["message"], "line 1 is not a JSON object");
  for (const auto& [id, word] : {std::pair("b", "temperature"), std::pair("c", "vocabulary")}) {
    const std::string message = lines.at(id)["error"]["message"];
    EXPECT_NE(message.find(word), std::string::npos) << message;
  }
}

// What a run that was killed has left: some whole lines and a piece of one.
TEST_F(BatchTest, GoesOnWhereItWas) {
  const std::string requests = Plain("a", "1") + "no line\n" + Plain("b", "2") + Plain("c", "3");
  ASSERT_EQ(Batch(requests, {"--raw"}).status, 0);
  const auto whole = Lines();
  ASSERT_EQ(whole.size(), std::size_t{4});
  const std::string text = Get("out.jsonl");
  std::vector<std::size_t> ends = {text.size() - 1,
                                   text.find('\n')};  // a line's end alone is missing
  for (std::size_t bytes = 0; bytes <= text.size(); bytes += 7) ends.push_back(bytes);
  for (const std::size_t bytes : ends) {
    Put("out.jsonl", text.substr(0, bytes));
    const ProgramResult result = Batch(requests, {"--raw"});
    ASSERT_EQ(result.status, 0) << result.err;
    ASSERT_EQ(Lines(), whole) << bytes;
  }
}

TEST_F(BatchTest, AFileOfSomethingElseIsLeftAlone) {
  for (const char* content :
       {"my diary\n", "no newline", R"({"a":1})", "{\"a\":1}\n", R"({"a":1,)",
        R"({"custom_id":"a","prompt":"1"})", "{\"custom_id\":\"a\",\"prompt\":\"1\"}\n"}) {
    Put("out.jsonl", content);
    const ProgramResult result = Batch(Plain("a", "1"), {"--raw"});
    EXPECT_EQ(result.status, 1);
    EXPECT_NE(result.err.find("--out: "), std::string::npos) << result.err;
    EXPECT_EQ(Get("out.jsonl"), content);
  }
}

TEST_F(BatchTest, TalksInTurns) {
  Put("turn_format.json", kTinyTurnFormat);
  const ProgramResult result =
      Batch(R"({"custom_id":"a","messages":[{"role":"user","content":"1"},{"role":"assistant",)"
            R"("content":"2"},{"role":"user","content":"3"}],"max_tokens":4})"
            "\n"
            R"({"custom_id":"b","messages":[{"role":"assistant","content":"2"}]})"
            "\n"
            R"({"custom_id":"c","url":"/v1/chat/completions","body":{"max_tokens":4,"messages":)"
            R"([{"role":"user","content":"1"}]}})"
            "\n");
  ASSERT_EQ(result.status, 0) << result.err;
  const auto lines = Lines();
  // "U1\nA2<e>\nU3\nA": the tiny tokenizer has a token for each byte.
  EXPECT_EQ(lines.at("a")["usage"]["prompt_tokens"], 13);
  const std::string message = lines.at("b")["error"]["message"];
  EXPECT_NE(message.find("\"user\"'s should come there"), std::string::npos) << message;
  EXPECT_EQ(lines.at("c")["response"]["status_code"], 200);
}

TEST_F(BatchTest, GivesSeveralAnswersToAPrompt) {
  const auto line = [](const char* id, int answers, int seed) {
    return R"({"custom_id":")" + std::string(id) +
           R"(","url":"/v1/completions","body":{"prompt":"1 2 3 4","max_tokens":8,)" +
           R"("temperature":1,"n":)" + std::to_string(answers) + R"(,"seed":)" +
           std::to_string(seed) + "}}\n";
  };
  const ProgramResult result =
      Batch(line("three", 3, 5) + line("a", 1, 5) + line("b", 1, 6) + line("c", 1, 7),
            {"--concurrency", "2"});
  ASSERT_EQ(result.status, 0) << result.err;
  const auto lines = Lines();
  const json& choices = lines.at("three")["response"]["body"]["choices"];
  ASSERT_EQ(choices.size(), std::size_t{3});
  int index = 0;
  for (const char* alone : {"a", "b", "c"}) {
    EXPECT_EQ(choices[index]["index"], index);
    EXPECT_EQ(choices[index++]["text"], lines.at(alone)["response"]["body"]["choices"][0]["text"]);
  }
  EXPECT_EQ(lines.at("three")["response"]["body"]["usage"]["prompt_tokens"],
            lines.at("a")["response"]["body"]["usage"]["prompt_tokens"]);
}

TEST_F(BatchTest, CountsWhatAllAnswersShare) {
  std::string prompt;
  for (int i = 0; i < 300; ++i) prompt += "word ";
  std::string requests;
  for (int i = 0; i < 2; ++i) {
    requests += R"({"custom_id":")" + std::to_string(i) +
                R"(","url":"/v1/completions","body":{"max_tokens":2,"n":3,"prompt":")" + prompt +
                "\"}}\n";
  }
  const ProgramResult result = Batch(requests, {"--concurrency", "1"});
  ASSERT_EQ(result.status, 0) << result.err;
  const auto cached = [lines = Lines()](const char* id) -> std::int64_t {
    return lines.at(id)["response"]["body"]["usage"]["prompt_tokens_details"]["cached_tokens"];
  };
  EXPECT_EQ(cached("0"), 0);
  EXPECT_GE(cached("1"), 1024);
}

// All of them in line at once would be more than may wait.
TEST_F(BatchTest, GivesAsManyAnswersAsMayBeAskedFor) {
  std::string requests;
  for (int i = 0; i < 12; ++i) {
    requests += R"({"custom_id":")" + std::to_string(i) +
                R"(","url":"/v1/completions","body":{"prompt":"1 2","max_tokens":1,"n":128}})" +
                "\n";
  }
  const ProgramResult result = Batch(requests, {"--concurrency", "12"});
  ASSERT_EQ(result.status, 0) << result.err;
  EXPECT_NE(result.err.find("12 answered, 0 failed"), std::string::npos) << result.err;
  for (const auto& [id, line] : Lines())
    EXPECT_EQ(line["response"]["body"]["choices"].size(), std::size_t{128});
}

TEST_F(BatchTest, ABadByteIsOneLinesError) {
  const ProgramResult result =
      Batch(Plain("a", "1") + Plain("b", "2 \xFF") + Plain("c", "3"), {"--raw"});
  EXPECT_EQ(result.status, 0) << result.err;
  const auto lines = Lines();
  ASSERT_EQ(lines.size(), std::size_t{3});
  EXPECT_TRUE(lines.at("a").contains("text"));
  EXPECT_TRUE(lines.at("c").contains("text"));
  const std::string message = lines.at("")["error"]["message"];
  EXPECT_NE(message.find("line 2 is not valid UTF-8 (0xff at byte 29"), std::string::npos)
      << message;
}

TEST_F(BatchTest, OneFileIsNotBoth) {
  const std::string requests = Plain("a", "1");
  const std::string path = Put("requests.jsonl", requests);
  std::filesystem::create_symlink(path, Path("symlink"));
  std::filesystem::create_hard_link(path, Path("hardlink"));
  for (const std::string& out :
       {path, Path("symlink"), Path("hardlink"), Path("./requests.jsonl")}) {
    const ProgramResult result = Run({"batch", "--raw", "--requests", path, "--out", out});
    EXPECT_EQ(result.status, 2) << result.err;
    EXPECT_NE(result.err.find("--out: "), std::string::npos) << result.err;
    EXPECT_EQ(Get("requests.jsonl"), requests);
  }
}

TEST_F(BatchTest, TwoBatchesDoNotWriteToOneFile) {
  const std::string path = Put("out.jsonl", "");
  const int fd = open(path.c_str(), O_RDWR | O_CLOEXEC);
  ASSERT_EQ(flock(fd, LOCK_EX), 0);
  const ProgramResult result = Batch(Plain("a", "1"), {"--raw"});
  EXPECT_EQ(result.status, 1);
  EXPECT_NE(result.err.find("another batch is writing"), std::string::npos) << result.err;
  EXPECT_EQ(Get("out.jsonl"), "");
  close(fd);
  EXPECT_EQ(Batch(Plain("a", "1"), {"--raw"}).status, 0);
}

// Requests through a pipe, and answers through another.
TEST_F(BatchTest, ReadsAndWritesPipes) {
  ASSERT_EQ(mkfifo(Path("in").c_str(), 0600), 0);
  ASSERT_EQ(mkfifo(Path("out").c_str(), 0600), 0);
  std::thread writer([&] {
    std::ofstream stream(Path("in"));
    for (int i = 0; i < 20; ++i) stream << Plain(std::to_string(i), "1 2 3") << std::flush;
  });
  std::string answers;
  std::thread reader([&] { answers = Get("out"); });
  const ProgramResult result =
      Run({"batch", "--raw", "--requests", Path("in"), "--out", Path("out")});
  writer.join();
  reader.join();
  EXPECT_EQ(result.status, 0) << result.err;
  EXPECT_EQ(std::count(answers.begin(), answers.end(), '\n'), 20);
}

TEST_F(BatchTest, NamesWhatIsMissing) {
  EXPECT_NE(Run({"batch", "--out", "x"}).err.find("--requests: missing"), std::string::npos);
  EXPECT_NE(Run({"batch", "--requests", "x"}).err.find("--out: missing"), std::string::npos);
}

}  // namespace
}  // namespace carousel
