// SPDX-License-Identifier: Apache-2.0
// Bytes as the conversations of `carousel evaluate`: refused with Error, or each can be run.
#include "base/check.h"
#include "carousel/error.h"
#include "cli/evaluation_tasks.h"
#include "fuzz/fuzz_target.h"

namespace carousel {
namespace {

bool IsEmpty(const TextOrTokens& text) {
  return std::visit([](const auto& value) { return value.empty(); }, text);
}

void CheckTask(const EvaluationTask& task) {
  CAROUSEL_CHECK(!task.turns.empty());
  for (const EvaluationTurn& turn : task.turns) {
    CAROUSEL_CHECK(!IsEmpty(turn.prompt));
    CAROUSEL_CHECK(!turn.score || (!IsEmpty(*turn.score) && !turn.max_new_tokens));
    CAROUSEL_CHECK(turn.max_new_tokens.value_or(0) >= 0);
  }
}

}  // namespace

std::vector<std::string> FuzzSeeds() {
  return {
      R"({"id": "a", "raw": true, "turns": [{"prompt": "x", "max_new_tokens": 3, "score_prompt": true}]})",
      R"({"id": 7, "turns": [{"prompt": [1, 2]}, {"prompt": "\u00e9", "score": [3]}]})"
      "\n\n"
      R"({"id": "b", "turns": [{"prompt": "y", "score": "z"}]})",
      R"({"id": 1, "turns": [{"prompt": "x", "max_new_tokens": 99999999999999999999}]})",
      std::string(500, '['),
  };
}

}  // namespace carousel

extern "C" int LLVMFuzzerTestOneInput(const std::uint8_t* data, std::size_t size) {
  using namespace carousel;
  try {
    for (const EvaluationTask& task :
         ParseEvaluationTasks({reinterpret_cast<const char*>(data), size}))
      CheckTask(task);
  } catch (const Error& error) {
    CAROUSEL_CHECK_EQ(error.field(), "tasks");
  }
  return 0;
}
