// SPDX-License-Identifier: Apache-2.0
#include "cli/prompt_file.h"

#include <fmt/format.h>

#include <limits>
#include <nlohmann/json.hpp>
#include <string_view>

#include "carousel/error.h"
#include "text/byte_source.h"
#include "text/text_pieces.h"

namespace carousel {
namespace {

// A prompt is read whole; larger ones are for `stream`.
constexpr std::size_t kMaxPromptBytes = std::size_t{256} << 20;

[[noreturn]] void FailPrompt(std::string_view problem) {
  throw Error(ErrorCode::kInvalidArgument, "prompt", problem);
}

}  // namespace

std::string ReadPromptFile(const std::string& path) {
  // Nothing is to be finished while a prompt is read: signals end the process, and nobody is woken.
  return *ReadWholeText(*OpenByteSource(path, -1), kMaxPromptBytes);
}

std::vector<TokenId> ReadTokenIds(const std::string& path) {
  const nlohmann::json ids = nlohmann::json::parse(ReadPromptFile(path), nullptr, false);
  if (!ids.is_array()) FailPrompt(fmt::format("{} is not a JSON array of token ids", path));
  std::vector<TokenId> tokens;
  tokens.reserve(ids.size());
  for (const nlohmann::json& id : ids) {
    const bool fits =
        id.is_number_integer() && id >= 0 && id <= std::numeric_limits<TokenId>::max();
    if (!fits)
      FailPrompt(
          fmt::format("{} is not a token id (entry {} of {})", id.dump(), tokens.size(), path));
    tokens.push_back(id.get<TokenId>());
  }
  if (tokens.empty()) FailPrompt(fmt::format("{} has no tokens; give at least one", path));
  return tokens;
}

}  // namespace carousel
