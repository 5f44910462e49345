// SPDX-License-Identifier: Apache-2.0
// A full disk under the second tier, as each command shows it: one line, a field, and no failure. A
// limit on the size of files stands for the disk.
#include <gtest/gtest.h>
#include <sys/resource.h>

#include <algorithm>
#include <nlohmann/json.hpp>

#include "testing/tiny_backend.h"

namespace carousel {
namespace {

using nlohmann::json;

class RecallNoticeTest : public ProgramTest {
 protected:
  static std::string Numbers() {
    std::string text;
    for (int i = 0; i < 400; ++i) text += std::to_string(i * 7) + " ";
    return text;
  }

  // Runs a command twice: with room, then without. Each leaves a summary.
  void ExpectSaidOnce(std::vector<std::string> arguments) {
    arguments.insert(
        arguments.end(),
        {"--start-size", "32", "--recent-size", "32", "--max-cache-size", "128", "--chunk", "64",
         "--recall-blocks", "2", "--recall-store", Path("past.bin"), "--json", Path("out.jsonl")});
    const ProgramResult roomy = Run(arguments);
    ASSERT_EQ(roomy.status, 0) << roomy.err;
    EXPECT_EQ(TimesSaid(roomy), 0) << roomy.err;
    EXPECT_EQ(Summary()["recall_refused_growths"], 0);
    EXPECT_EQ(Summary()["recall_limited_by"], "");
    rlimit before{};
    ASSERT_EQ(getrlimit(RLIMIT_FSIZE, &before), 0);
    rlimit small = before;
    small.rlim_cur = std::size_t{64} << 10;
    ASSERT_EQ(setrlimit(RLIMIT_FSIZE, &small), 0);
    const ProgramResult full = Run(arguments);
    setrlimit(RLIMIT_FSIZE, &before);
    ASSERT_EQ(full.status, 0) << full.err;
    EXPECT_EQ(TimesSaid(full), 1) << full.err;
    EXPECT_NE(full.err.find("File too large"), std::string::npos) << full.err;
    const json summary = Summary();
    EXPECT_GE(summary["recall_refused_growths"], 1);
    EXPECT_NE(summary["recall_limited_by"].get<std::string>().find("File too large"),
              std::string::npos);
    EXPECT_GT(summary["recall_stored_tokens"], 0);
    EXPECT_GT(summary["recall_dropped_tokens"], 0);
    EXPECT_GT(summary["recalled_blocks"], 0);
  }

 private:
  int TimesSaid(const ProgramResult& result) const {
    const std::string notice = "carousel: note: recall: " + Path("past.bin");
    int times = 0;
    for (std::size_t at = result.err.find(notice); at != std::string::npos;
         at = result.err.find(notice, at + 1))
      ++times;
    return times;
  }
  json Summary() const {
    const std::string lines = Get("out.jsonl");
    return json::parse(lines.substr(lines.rfind('\n', lines.size() - 2) + 1));
  }
};

TEST_F(RecallNoticeTest, Stream) {
  ExpectSaidOnce({"stream", "--text", Put("text", Numbers()), "--segment", "500"});
}

TEST_F(RecallNoticeTest, Generate) {
  ExpectSaidOnce({"generate", "--raw", "--prompt", Numbers(), "--max-new-tokens", "100"});
}

TEST_F(RecallNoticeTest, Evaluate) {
  const std::string task = R"({"id": 1, "raw": true, "turns": [{"prompt": ")" + Numbers() +
                           R"("}, {"prompt": "more"}]})";
  ExpectSaidOnce({"evaluate", "--tasks", Put("tasks", task + "\n" + task)});
}

}  // namespace
}  // namespace carousel
