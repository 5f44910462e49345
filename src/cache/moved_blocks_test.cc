// SPDX-License-Identifier: Apache-2.0
#include "cache/moved_blocks.h"

#include <gtest/gtest.h>
#include <unistd.h>

#include <filesystem>
#include <random>
#include <string>
#include <vector>

#include "carousel/error.h"

namespace carousel {
namespace {

std::vector<std::byte> RandomBytes(std::size_t count) {
  std::mt19937 generator(3);
  std::vector<std::byte> bytes(count);
  for (std::byte& byte : bytes) byte = static_cast<std::byte>(generator());
  return bytes;
}

class MovedBlocksTest : public ::testing::Test {
 protected:
  MovedBlocksTest()
      : folder_(std::filesystem::path(::testing::TempDir()) /
                ("carousel_moved_" + std::to_string(getpid()))) {
    std::filesystem::create_directories(folder_);
  }
  ~MovedBlocksTest() override { std::filesystem::remove_all(folder_); }

  std::filesystem::path folder_;
};

TEST_F(MovedBlocksTest, GiveBackWhatTheyTook) {
  const std::vector<std::byte> bytes = RandomBytes(1'000'000);
  for (const bool in_file : {true, false}) {
    MovedBlocks blocks = in_file ? MovedBlocks::InFile(folder_.string(), std::ssize(bytes))
                                 : MovedBlocks::InMemory(std::ssize(bytes));
    ASSERT_FALSE(blocks.empty());
    EXPECT_EQ(blocks.is_in_file(), in_file);
    for (std::size_t at = 0; at < bytes.size(); at += 10'000)
      ASSERT_TRUE(blocks.Append(std::span(bytes).subspan(at, 10'000)));
    std::vector<std::byte> read(10'000);
    for (const std::size_t at : {990'000, 0, 5'000}) {
      blocks.Read(static_cast<std::size_t>(at), read);
      EXPECT_TRUE(
          std::equal(read.begin(), read.end(), bytes.begin() + static_cast<std::ptrdiff_t>(at)));
    }
    // The file has no name.
    EXPECT_TRUE(std::filesystem::is_empty(folder_));
  }
}

TEST_F(MovedBlocksTest, AFolderThatIsNoneIsRefused) {
  EXPECT_NO_THROW(CheckSwapDirectory(folder_.string()));
  const std::string missing = (folder_ / "missing").string();
  EXPECT_TRUE(MovedBlocks::InFile(missing, 100).empty());
  try {
    CheckSwapDirectory(missing);
    FAIL();
  } catch (const Error& error) {
    EXPECT_EQ(error.field(), "swap_directory");
    EXPECT_NE(error.problem().find(missing), std::string::npos);
    EXPECT_NE(error.problem().find("No such file"), std::string::npos);
  }
}

}  // namespace
}  // namespace carousel
