// SPDX-License-Identifier: Apache-2.0
#include "openvino/rope_file.h"

#include <gtest/gtest.h>
#include <unistd.h>

#include <fstream>

namespace carousel {
namespace {

namespace fs = std::filesystem;

class RopeFileTest : public ::testing::Test {
 protected:
  RopeFileTest()
      : folder_(fs::temp_directory_path() / ("carousel_rope_file_" + std::to_string(getpid()))) {
    fs::create_directories(folder_);
    Put("openvino_model.xml", "<net/>");
    Put("openvino_model.bin", "weights");
  }
  ~RopeFileTest() override { fs::remove_all(folder_); }
  void Put(const std::string& name, const std::string& content) {
    std::ofstream(folder_ / name, std::ios::binary) << content;
  }
  std::string Read(std::string_view precision = "f32") const {
    return RopeFile(folder_, precision).Read();
  }

  fs::path folder_;
};

TEST_F(RopeFileTest, HoldsWhatWasFoundForAsLongAsTheModelIsTheSame) {
  EXPECT_EQ(Read(), "");
  RopeFile(folder_, "f32").Keep("found\nthis\n");
  EXPECT_EQ(Read(), "found\nthis\n");
  EXPECT_EQ(Read("bf16"), "");
  Put("openvino_model.bin", "Weights");
  EXPECT_EQ(Read(), "");
  RopeFile(folder_, "f32").Keep("found that\n");
  EXPECT_EQ(Read(), "found that\n");
  Put("openvino_model.xml", "<net />");
  EXPECT_EQ(Read(), "");
}

TEST_F(RopeFileTest, LeavesNothingHalfWrittenAndFailsNoStart) {
  RopeFile(folder_, "f32").Keep("found\n");
  EXPECT_EQ(std::distance(fs::directory_iterator(folder_), {}), 3);
  RopeFile(folder_ / "none", "f32").Keep("found\n");
  EXPECT_EQ(RopeFile(folder_ / "none", "f32").Read(), "");
  fs::remove(folder_ / "openvino_model.bin");
  EXPECT_EQ(Read(), "");
}

}  // namespace
}  // namespace carousel
