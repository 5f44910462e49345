// SPDX-License-Identifier: Apache-2.0
// Bytes as a line of a batch: never thrown for, a request or a problem, and lines that can be
// written.
#include <nlohmann/json.hpp>

#include "api/batch_line.h"
#include "base/check.h"
#include "fuzz/fuzz_target.h"

namespace carousel {

std::vector<std::string> FuzzSeeds() {
  return {
      R"({"custom_id":"a","prompt":"x","max_tokens":3,"temperature":0.5,"stop":["y"]})",
      R"({"custom_id":7,"prompt":[1,2],"ignore_eos":true,"seed":18446744073709551615})",
      R"({"custom_id":"b","url":"/v1/chat/completions","method":"POST","body":{"messages":)"
      R"([{"role":"user","content":[{"type":"text","text":"z"}]}],"n":1,"tools":null}})",
      R"({"custom_id":"c","url":"/v1/completions","body":{"prompt":"x","max_tokens":1e400}})",
      std::string(500, '['),
  };
}

}  // namespace carousel

extern "C" int LLVMFuzzerTestOneInput(const std::uint8_t* data, std::size_t size) {
  using namespace carousel;
  const std::string_view text(reinterpret_cast<const char*>(data), size);
  const BatchLine line = ReadBatchLine(text, 1, {.max_new_tokens = 1});
  CAROUSEL_CHECK_EQ(line.request.has_value(), line.problem.empty());
  constexpr auto kReplace = nlohmann::ordered_json::error_handler_t::replace;
  if (line.request) {
    CAROUSEL_CHECK(line.custom_id.has_value());
    CAROUSEL_CHECK_GT(line.request->max_new_tokens, 0);
    CAROUSEL_CHECK_GT(line.request->answers, 0);
    const Answer answer;
    const auto written = AnswerLine(line, {&answer, 1}, {}, "m", 0);
    CAROUSEL_CHECK(!written.dump(-1, ' ', false, kReplace).empty());
  } else {
    CAROUSEL_CHECK(!ErrorLine(line, line.problem, false).dump(-1, ' ', false, kReplace).empty());
  }
  CustomIdOf(text);
  return 0;
}
