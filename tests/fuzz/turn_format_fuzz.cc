// SPDX-License-Identifier: Apache-2.0
// Bytes as turn_format.json: refused with Error, or turns can be rendered, or a content is refused.
#include <optional>

#include "base/check.h"
#include "base/utf8.h"
#include "carousel/error.h"
#include "fuzz/fuzz_target.h"
#include "text/turn_format.h"

namespace carousel {
namespace {

void Render(const TurnFormat& format) {
  if (!format.reducible()) return;
  const std::string first = JoinedText(format.FirstTurn(std::nullopt, " hello "));
  const std::string next = JoinedText(format.NextTurn(" hello "));
  for (const std::string* text : {&first, &next}) {
    CAROUSEL_CHECK(text->find("hello") != std::string::npos);
    CAROUSEL_CHECK(!FindInvalidUtf8(*text) && text->find('\0') == std::string::npos);
  }
  if (format.has_system()) {
    const std::string whole = JoinedText(format.FirstTurn("system", "hello"));
    CAROUSEL_CHECK(whole.starts_with(JoinedText(format.Beginning("system"))));
  }
}

// What may be refused of a file that was taken.
bool IsOfContent(const Error& error) {
  return error.field() == "system" || error.field() == "message";
}

}  // namespace

std::vector<std::string> FuzzSeeds() {
  return {
      R"({"format":"carousel-turn-format","version":1,"reducible":true,"begin":"","begin_without_system":"<s>",)"
      R"("roles":{"system":{"before":"S","after":"\n"},"user":{"before":"U","after":"\n"},)"
      R"("assistant":{"before":"A","after":"<e>\n"}},"generation_prompt":"A","end_of_turn":"<e>","trim":true})",
      R"({"format":"carousel-turn-format","version":1,"reducible":true,"begin":"\u00e9","begin_without_system":"",)"
      R"("roles":{"user":{"before":"","after":""},"assistant":{"before":"","after":""}},)"
      R"("generation_prompt":"","end_of_turn":"","trim":false})",
      R"({"format":"carousel-turn-format","version":2,"reducible":true,"begin_without_system":["On ",{"date":"%d %b %Y"}],)"
      R"("roles":{"system":{"before":[{"date":"%A%%"},"S"],"after":"\n","trim":"left","blank":false,"refused_words":["/no"],)"
      R"("opens_user_turn":true},"user":{"before":"U","after":"\n","trim":"both","blank":true,"refused_words":["</t>"]},)"
      R"("assistant":{"after":"<e>\n"}},"generation_prompt":"A","end_of_turn":"<e>"})",
      R"({"format":"carousel-turn-format","version":1,"reducible":false,"reason":"it counts"})",
      std::string(500, '['),
  };
}

}  // namespace carousel

extern "C" int LLVMFuzzerTestOneInput(const std::uint8_t* data, std::size_t size) {
  using namespace carousel;
  std::optional<TurnFormat> format;
  try {
    format = TurnFormat::Parse({reinterpret_cast<const char*>(data), size});
  } catch (const Error& error) {
    CAROUSEL_CHECK_EQ(error.field(), TurnFormat::kFileName);
    return 0;
  }
  try {
    Render(*format);
  } catch (const Error& error) {
    CAROUSEL_CHECK(IsOfContent(error));
  }
  return 0;
}
