// SPDX-License-Identifier: Apache-2.0
#include "answers/prompt_file.h"

#include <fmt/format.h>

#include <filesystem>
#include <limits>
#include <nlohmann/json.hpp>
#include <string_view>
#include <system_error>

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

std::string ReadPromptLines(const std::string& path) {
  return *ReadWhole(*OpenByteSource(path, -1), kMaxPromptBytes);
}

std::vector<TokenId> ReadTokenIds(const std::string& path) {
  return TokenIdsOf(nlohmann::json::parse(ReadPromptFile(path), nullptr, false), path);
}

std::vector<TokenId> TokenIdsOf(const nlohmann::json& ids, const std::string& where) {
  if (!ids.is_array()) FailPrompt(fmt::format("{} is not a JSON array of token ids", where));
  std::vector<TokenId> tokens;
  tokens.reserve(ids.size());
  for (const nlohmann::json& id : ids) {
    const bool fits =
        id.is_number_integer() && id >= 0 && id <= std::numeric_limits<TokenId>::max();
    if (!fits)
      FailPrompt(
          fmt::format("{} is not a token id (entry {} of {})", id.dump(), tokens.size(), where));
    tokens.push_back(id.get<TokenId>());
  }
  if (tokens.empty()) FailPrompt(fmt::format("{} has no tokens; give at least one", where));
  return tokens;
}

TurnFormat LoadTurns(const std::string& model_directory, std::string_view mend) {
  std::error_code error_code;
  if (!std::filesystem::is_directory(model_directory, error_code)) {
    throw Error(ErrorCode::kModel, "model",
                fmt::format("{} is not a folder; name a model's (carousel models lists them)",
                            model_directory));
  }
  try {
    TurnFormat format = TurnFormat::Load(model_directory);
    if (format.reducible()) return format;
    throw Error(ErrorCode::kModel, TurnFormat::kFileName,
                fmt::format("the chat template cannot be reduced to turns: {}", format.reason()));
  } catch (const Error& error) {
    throw Error(error.code(), error.field(), fmt::format("{}; {}", error.problem(), mend));
  }
}

}  // namespace carousel
