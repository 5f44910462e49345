// SPDX-License-Identifier: Apache-2.0
#include "openvino/model_files.h"

#include <gmock/gmock.h>
#include <gtest/gtest.h>

#include <cmath>
#include <fstream>
#include <stdexcept>
#include <string>

#include "carousel/error.h"
#include "models/temporary_directory.h"

namespace carousel {
namespace {

using ::testing::AllOf;
using ::testing::ElementsAre;
using ::testing::HasSubstr;
using ::testing::IsEmpty;

class DeclaredConfigTest : public ::testing::Test {
 protected:
  void Write(const std::string& name, const std::string& text) const {
    std::ofstream(folder_.path() / name) << text;
  }
  DeclaredConfig Read() const { return ReadDeclaredConfig(folder_.path()); }
  std::string ReadError() const {
    try {
      Read();
    } catch (const Error& error) {
      EXPECT_EQ(error.code(), ErrorCode::kModel);
      return error.what();
    }
    return "read";
  }

 private:
  testing::TemporaryDirectory folder_;
};

TEST_F(DeclaredConfigTest, NoFilesDeclareNothing) {
  const DeclaredConfig config = Read();
  EXPECT_EQ(config.architecture, "");
  EXPECT_EQ(config.trained_window, 0);
  EXPECT_EQ(config.rope_theta, 0.0);
  EXPECT_EQ(config.attention_factor, 1.0);
  EXPECT_THAT(config.end_tokens, IsEmpty());
}

TEST_F(DeclaredConfigTest, ReadsWhatIsThere) {
  Write("config.json",
        R"({"model_type": "llama", "max_position_embeddings": 8192, "rope_theta": 100000,
                           "eos_token_id": 2, "unknown": {"a": [1]}})");
  Write("generation_config.json", R"({"eos_token_id": [2, 7]})");
  const DeclaredConfig config = Read();
  EXPECT_EQ(config.architecture, "llama");
  EXPECT_EQ(config.trained_window, 8192);
  EXPECT_EQ(config.rope_theta, 100000.0);
  EXPECT_THAT(config.end_tokens, ElementsAre(2, 7));
}

TEST_F(DeclaredConfigTest, LayersOfRope) {
  Write("config.json", R"({"carousel": {"rope": {
      "tables": [{"frequencies": [1.0, 0.1]}, {"frequencies": [0.5]}], "layers": [1, null, 0]}}})");
  const std::vector<DeclaredRope> layers = Read().rope;
  ASSERT_EQ(layers.size(), 3U);
  EXPECT_THAT(layers[0].frequencies, ElementsAre(0.5));
  EXPECT_THAT(layers[1].frequencies, IsEmpty());
  EXPECT_THAT(layers[2].frequencies, ElementsAre(1.0, 0.1));
  for (const char* rope : {"1", R"({"tables": []})", R"({"tables": [], "layers": [0]})",
                           R"({"tables": [{"frequencies": ["a"]}], "layers": []})"}) {
    Write("config.json", std::string(R"({"carousel": {"rope": )") + rope + "}}");
    EXPECT_THAT(ReadError(), AllOf(HasSubstr("config.json"), HasSubstr("carousel.rope"))) << rope;
  }
}

TEST_F(DeclaredConfigTest, AttentionFactorIsGivenOrYarns) {
  Write("config.json", R"({"rope_scaling": {"attention_factor": 1.25, "type": "longrope"}})");
  EXPECT_EQ(Read().attention_factor, 1.25);
  Write("config.json", R"({"rope_scaling": {"rope_type": "yarn", "factor": 40.0}})");
  EXPECT_NEAR(Read().attention_factor, 0.1 * std::log(40.0) + 1.0, 1e-12);
  Write("config.json", R"({"rope_scaling": {"type": "linear", "factor": 4.0}})");
  EXPECT_EQ(Read().attention_factor, 1.0);
  Write("config.json", R"({"rope_scaling": null})");
  EXPECT_EQ(Read().attention_factor, 1.0);
}

TEST_F(DeclaredConfigTest, NullsAreAsGoodAsNothing) {
  Write("config.json", R"({"model_type": null, "eos_token_id": null, "rope_theta": null})");
  EXPECT_EQ(Read().architecture, "");
  EXPECT_THAT(Read().end_tokens, IsEmpty());
}

TEST_F(DeclaredConfigTest, WrongKindsNameFileKeyAndValue) {
  for (const char* text : {R"({"eos_token_id": "two"})", R"({"eos_token_id": [1, -1]})",
                           R"({"eos_token_id": 2.5})", R"({"eos_token_id": 99999999999})"}) {
    Write("config.json", text);
    EXPECT_THAT(ReadError(), AllOf(HasSubstr("config.json"), HasSubstr("eos_token_id")));
  }
  Write("config.json", R"({"max_position_embeddings": -5})");
  EXPECT_THAT(ReadError(), AllOf(HasSubstr("max_position_embeddings"), HasSubstr("-5")));
  Write("config.json", R"({"rope_theta": "large"})");
  EXPECT_THAT(ReadError(), AllOf(HasSubstr("rope_theta"), HasSubstr("large")));
}

TEST_F(DeclaredConfigTest, WhatIsNotJsonNamesTheFile) {
  for (const char* text : {"", "{", "[1]", "null", "\xff\xfe", "{\"a\": 1} trailing"}) {
    Write("config.json", text);
    EXPECT_THAT(ReadError(), AllOf(HasSubstr("config.json"), HasSubstr("JSON"))) << text;
  }
}

TEST(BriefReasonTest, IsTheLastLineWithWords) {
  EXPECT_EQ(BriefReason(std::runtime_error(
                "Exception from src/core.cpp:97:\nCheck 'x' failed:\nNo room left.\n\n")),
            "No room left");
  EXPECT_EQ(BriefReason(std::runtime_error("")), "no reason given");
  EXPECT_EQ(BriefReason(std::runtime_error("a\tb\x01"
                                           "c\xc3")),
            "a b c");
  EXPECT_EQ(BriefReason(std::runtime_error(std::string(5000, 'x'))).size(), 200);
}

}  // namespace
}  // namespace carousel
