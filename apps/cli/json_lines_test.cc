// SPDX-License-Identifier: Apache-2.0
#include "cli/json_lines.h"

#include <gtest/gtest.h>
#include <sys/resource.h>

#include <csignal>
#include <filesystem>
#include <fstream>
#include <nlohmann/json.hpp>
#include <sstream>

#include "carousel/error.h"

namespace carousel {
namespace {

using nlohmann::ordered_json;

std::string ReadFile(const std::string& path) {
  std::ostringstream content;
  content << std::ifstream(path).rdbuf();
  return content.str();
}

class JsonLinesTest : public testing::Test {
 protected:
  void TearDown() override { std::filesystem::remove(path_); }
  std::string path_ = testing::TempDir() + "/json_lines_test.jsonl";
};

TEST_F(JsonLinesTest, EveryLineIsOutAtOnce) {
  JsonLines lines(path_, -1);
  lines.Write({{"type", "segment"}, {"nll", 1.5}});
  EXPECT_EQ(ReadFile(path_), "{\"type\":\"segment\",\"nll\":1.5}\n");
  lines.Write({{"text", "caf\xC3\xA9 \xFF"}});
  lines.Close();
  EXPECT_EQ(ReadFile(path_),
            "{\"type\":\"segment\",\"nll\":1.5}\n{\"text\":\"caf\xC3\xA9 \xEF\xBF\xBD\"}\n");
}

TEST_F(JsonLinesTest, AnOlderFileStaysUntilTheFirstLine) {
  std::ofstream(path_) << "old, and longer than what comes";
  JsonLines lines(path_, -1);
  EXPECT_EQ(ReadFile(path_), "old, and longer than what comes");
  lines.Write({{"a", 1}});
  EXPECT_EQ(ReadFile(path_), "{\"a\":1}\n");
}

TEST_F(JsonLinesTest, AnOlderFileIsGoneOnceARunHasBegun) {
  std::ofstream(path_) << "old";
  {
    JsonLines lines(path_, -1);
    lines.Begin();
    EXPECT_EQ(ReadFile(path_), "");
    lines.Write({{"a", 1}});
    lines.Begin();
  }
  EXPECT_EQ(ReadFile(path_), "{\"a\":1}\n");
}

TEST_F(JsonLinesTest, ARunWithoutLinesLeavesNoNewFile) {
  { const JsonLines lines(path_, -1); }
  EXPECT_FALSE(std::filesystem::exists(path_));
  std::ofstream(path_) << "old";
  { const JsonLines lines(path_, -1); }
  EXPECT_EQ(ReadFile(path_), "old");
}

TEST_F(JsonLinesTest, ABadPathFailsAtOnce) {
  try {
    JsonLines lines("/no/such/folder/file", -1);
    FAIL();
  } catch (const Error& error) {
    EXPECT_EQ(error.field(), "json");
    EXPECT_EQ(error.code(), ErrorCode::kIo);
    EXPECT_EQ(error.problem(), "cannot write /no/such/folder/file: No such file or directory");
  }
  EXPECT_THROW(JsonLines lines(testing::TempDir(), -1), Error);
}

TEST_F(JsonLinesTest, AFullDeviceIsAnError) {
  JsonLines lines("/dev/full", -1);
  EXPECT_THROW(lines.Write({{"a", 1}}), Error);
}

TEST_F(JsonLinesTest, AFullDiskLeavesWholeLines) {
  // A limit on the file's size is a disk that fills up in the middle of a line.
  rlimit old_limit{};
  ASSERT_EQ(getrlimit(RLIMIT_FSIZE, &old_limit), 0);
  const auto old_handler = std::signal(SIGXFSZ, SIG_IGN);
  {
    JsonLines lines(path_, -1);
    lines.Write({{"a", 1}});
    const rlimit limit{.rlim_cur = 20, .rlim_max = old_limit.rlim_max};
    ASSERT_EQ(setrlimit(RLIMIT_FSIZE, &limit), 0);
    EXPECT_THROW(lines.Write({{"b", std::string(100, 'x')}}), Error);
    EXPECT_EQ(ReadFile(path_), "{\"a\":1}\n");
    lines.Write({{"c", 2}});
  }
  setrlimit(RLIMIT_FSIZE, &old_limit);
  std::signal(SIGXFSZ, old_handler);
  EXPECT_EQ(ReadFile(path_), "{\"a\":1}\n{\"c\":2}\n");
}

}  // namespace
}  // namespace carousel
