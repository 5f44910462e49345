// SPDX-License-Identifier: Apache-2.0
// The whole program without OpenVINO, for tests: a tiny random model and a tokenizer of bytes.
#pragma once

#include <gtest/gtest.h>
#include <unistd.h>

#include <cstdio>
#include <filesystem>
#include <fstream>
#include <memory>
#include <sstream>
#include <string>
#include <vector>

#include "carousel/error.h"
#include "cli/backend.h"
#include "cli/commands.h"
#include "engine/tiny_model.h"
#include "testing/fake_tokenizer.h"

namespace carousel {

// The chat template of its models' folders, for tests that put one there.
inline constexpr const char* kTinyTurnFormat =
    R"({"format":"carousel-turn-format","version":1,"reducible":true,"begin":"","begin_without_system":"",)"
    R"("roles":{"user":{"before":"U","after":"\n"},"assistant":{"before":"A","after":"<e>\n"}},)"
    R"("generation_prompt":"A","end_of_turn":"<e>","trim":false})";

class TinyBackend : public Backend {
 public:
  std::unique_ptr<Model> LoadModel(const ModelFlags& flags) override {
    ++models_loaded;
    if (!std::filesystem::is_directory(flags.directory))
      throw Error(ErrorCode::kModel, "model", flags.directory + " is not there");
    return std::make_unique<TinyModel>(
        TinyModelOptions{.vocabulary_size = Tokens()->vocabulary_size(),
                         .trained_window = trained_window,
                         .end_tokens = {Tokens()->special_token()}});
  }
  std::unique_ptr<Tokenizer> LoadTokenizer(const ModelFlags& /*flags*/,
                                           std::int64_t /*vocabulary_size*/) override {
    return Tokens();
  }
  std::unique_ptr<SingleSequenceEngine> CreateEngine(std::unique_ptr<Model> model,
                                                     const EngineConfig& config) override {
    return SingleSequenceEngine::Create(std::move(model), config);
  }

  int models_loaded = 0;
  std::int64_t trained_window = 4096;

 private:
  static std::unique_ptr<FakeTokenizer> Tokens() {
    return std::make_unique<FakeTokenizer>(std::vector<std::string>{" the", "ing", "<end>"},
                                           FakeTokenizer::Partial::kRaw);
  }
};

// What a run of the program has left behind.
struct ProgramResult {
  int status = 0;
  std::string out;
  std::string err;
};

// Runs the program in a folder of its own, in which files can be put before and read after.
class ProgramTest : public testing::Test {
 protected:
  ProgramTest() {
    const auto* info = testing::UnitTest::GetInstance()->current_test_info();
    folder_ = std::filesystem::path(testing::TempDir()) /
              (std::string("carousel_") + info->name() + "_" + std::to_string(getpid()));
    std::filesystem::create_directories(folder_);
  }
  ~ProgramTest() override { std::filesystem::remove_all(folder_); }

  std::string Path(const std::string& name) const { return (folder_ / name).string(); }
  std::string Put(const std::string& name, const std::string& content) const {
    std::ofstream(Path(name), std::ios::binary) << content;
    return Path(name);
  }
  std::string Get(const std::string& name) const {
    std::ostringstream content;
    content << std::ifstream(Path(name), std::ios::binary).rdbuf();
    return content.str();
  }

  // The model's folder is the test's.
  ProgramResult Run(std::vector<std::string> arguments) {
    arguments.insert(arguments.end(), {"--model", folder_.string()});
    return RunExactly(arguments);
  }

  ProgramResult RunExactly(const std::vector<std::string>& arguments) {
    std::FILE* out = std::tmpfile();
    std::FILE* err = std::tmpfile();
    Console console{.out = TextOutput(fileno(out), "standard output"),
                    .err = TextOutput(fileno(err), "standard error")};
    ProgramResult result;
    result.status = RunProgram(
        arguments, [](const std::string&) -> const char* { return nullptr; }, backend(), &console);
    result.out = Drain(out);
    result.err = Drain(err);
    return result;
  }

  // What the program runs over.
  virtual Backend* backend() { return &backend_; }

  TinyBackend backend_;

 private:
  static std::string Drain(std::FILE* file) {
    std::string text(1 << 20, '\0');
    std::rewind(file);
    text.resize(std::fread(text.data(), 1, text.size(), file));
    std::fclose(file);
    return text;
  }

  std::filesystem::path folder_;
};

}  // namespace carousel
