// SPDX-License-Identifier: Apache-2.0
// What the commands say when a model's logits are no numbers.
#include <fcntl.h>
#include <gtest/gtest.h>
#include <unistd.h>

#include <limits>
#include <memory>
#include <string>
#include <utility>
#include <vector>

#include "testing/poisoned_model.h"
#include "testing/tiny_backend.h"

namespace carousel {
namespace {

std::string Problem(const std::string& where, int tokens, const std::string& what) {
  return "carousel: --model: " + where + "after " + std::to_string(tokens) +
         " tokens of the sequence " + what +
         ", so there is no next word; compute in float32 (--precision f32), or import the model "
         "again\n";
}

class PoisonedBackend : public TinyBackend {
 public:
  std::unique_ptr<Model> LoadModel(const ModelFlags& flags) override {
    poison.active = false;
    return std::make_unique<PoisonedModel>(TinyBackend::LoadModel(flags), &poison);
  }
  std::unique_ptr<SingleSequenceEngine> CreateEngine(std::unique_ptr<Model> model,
                                                     const EngineConfig& config) override {
    auto engine = TinyBackend::CreateEngine(std::move(model), config);
    poison.active = true;
    return engine;
  }

  Poison poison;
};

class UnusableLogitsTest : public ProgramTest {
 protected:
  Backend* backend() override { return &poisoned_; }

  void ExpectFailure(const std::vector<std::string>& arguments, const std::string& problem) {
    const ProgramResult result = Run(arguments);
    EXPECT_EQ(result.status, 1);
    EXPECT_EQ(result.err, problem);
  }

  PoisonedBackend poisoned_;
};

TEST_F(UnusableLogitsTest, EndGenerate) {
  const std::vector<std::string> greedy = {"generate",     "--prompt",         "Once upon", "--raw",
                                           "--ignore-eos", "--max-new-tokens", "20"};
  std::vector<std::string> sampled = greedy;
  sampled.insert(sampled.end(), {"--temperature", "0.7", "--top-p", "0.95"});
  for (const auto& arguments : {greedy, sampled}) {
    poisoned_.poison = {.after_tokens = 14, .first_word = 2};
    ExpectFailure(arguments, Problem("", 14, "the logit of word 2 is NaN"));
    poisoned_.poison = {.after_tokens = 11, .logit = std::numeric_limits<float>::infinity()};
    ExpectFailure(arguments, Problem("", 11, "the logit of word 0 is infinite"));
  }
}

TEST_F(UnusableLogitsTest, EndStream) {
  poisoned_.poison = {.after_tokens = 300};
  const std::string text = Put("text", std::string(1000, 'x'));
  ExpectFailure({"stream", "--text", text, "--chunk", "64"},
                Problem("", 300, "the logit of word 0 is NaN"));
}

TEST_F(UnusableLogitsTest, EndEvaluate) {
  const auto tasks = [this](const std::string& turn) {
    return std::vector<std::string>{
        "evaluate", "--tasks",
        Put("tasks", R"({"id": "q", "raw": true, "turns": [{)" + turn + "}]}")};
  };
  poisoned_.poison = {.after_tokens = 5};
  const std::string problem = Problem("line 1, turn 1: ", 5, "the logit of word 0 is NaN");
  ExpectFailure(tasks(R"("prompt": [65, 66, 67], "score": [68, 69, 70, 71])"), problem);
  ExpectFailure(tasks(R"("prompt": [65, 66, 67, 68, 69, 70], "score_prompt": true)"), problem);
  ExpectFailure(tasks(R"("prompt": [65, 66, 67], "max_new_tokens": 9)"), problem);
}

TEST_F(UnusableLogitsTest, AreToldInAChat) {
  Put("turn_format.json", kTinyTurnFormat);
  poisoned_.poison = {.after_tokens = 5};  // "Uhi\nA"
  const int input = open(Put("input", "hi\n").c_str(), O_RDONLY);
  const int before = dup(STDIN_FILENO);
  dup2(input, STDIN_FILENO);
  const ProgramResult result = Run({"chat"});
  dup2(before, STDIN_FILENO);
  close(before);
  close(input);
  EXPECT_EQ(result.out, "");  // nothing was sampled
  EXPECT_NE(result.err.find("after 5 tokens of the sequence the logit of word 0 is NaN"),
            std::string::npos)
      << result.err;
}

}  // namespace
}  // namespace carousel
