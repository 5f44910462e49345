// SPDX-License-Identifier: Apache-2.0
#include "cli/logits_file.h"

#include <gtest/gtest.h>
#include <sys/resource.h>

#include <csignal>
#include <filesystem>
#include <fstream>
#include <vector>

#include "carousel/error.h"

namespace carousel {
namespace {

class LogitsFileTest : public testing::Test {
 protected:
  void TearDown() override { std::filesystem::remove(path_); }
  std::string path_ = testing::TempDir() + "/logits_file_test";
  std::vector<float> logits_ = {1.0F, 2.0F, 3.0F, 4.0F};
};

TEST_F(LogitsFileTest, RowsOfAnotherRunAreGoneAtOnce) {
  std::ofstream(path_) << "rows of another run";
  const LogitsFile file(path_);
  EXPECT_EQ(std::filesystem::file_size(path_), 0U);
}

TEST_F(LogitsFileTest, AFullDiskLeavesWholeRows) {
  rlimit old_limit{};
  ASSERT_EQ(getrlimit(RLIMIT_FSIZE, &old_limit), 0);
  const auto old_handler = std::signal(SIGXFSZ, SIG_IGN);
  {
    LogitsFile file(path_);
    file.Append(logits_);
    const rlimit limit{.rlim_cur = 24, .rlim_max = old_limit.rlim_max};  // a row and a half
    ASSERT_EQ(setrlimit(RLIMIT_FSIZE, &limit), 0);
    EXPECT_THROW(file.Append(logits_), Error);
    setrlimit(RLIMIT_FSIZE, &old_limit);
    EXPECT_EQ(std::filesystem::file_size(path_), 16U);
    EXPECT_EQ(file.rows(), 1);
    file.Append(logits_);
    file.Close();
  }
  std::signal(SIGXFSZ, old_handler);
  EXPECT_EQ(std::filesystem::file_size(path_), 32U);
}

TEST_F(LogitsFileTest, AFullDeviceIsAnError) {
  LogitsFile file("/dev/full");
  EXPECT_THROW(file.Append(logits_), Error);
}

}  // namespace
}  // namespace carousel
