// SPDX-License-Identifier: Apache-2.0
#include "cli/evaluation_tasks.h"

#include <fmt/format.h>

#include <algorithm>
#include <initializer_list>
#include <nlohmann/json.hpp>

#include "answers/prompt_file.h"
#include "base/lines.h"
#include "carousel/error.h"

namespace carousel {
namespace {

using nlohmann::json;

[[noreturn]] void Fail(std::string_view problem) {
  throw Error(ErrorCode::kInvalidArgument, "tasks", problem);
}

// Readers of one object; `where` names it in messages ("line 3, turn 1").
void RefuseUnknown(const json& object, std::initializer_list<std::string_view> known,
                   const std::string& where) {
  for (const auto& [key, value] : object.items()) {
    if (std::find(known.begin(), known.end(), key) == known.end())
      Fail(fmt::format("{}: {} is unknown; known are \"{}\"", where, json(key).dump(),
                       fmt::join(known.begin(), known.end(), "\", \"")));
  }
}

bool Flag(const json& object, const char* key, const std::string& where) {
  const auto found = object.find(key);
  if (found == object.end()) return false;
  if (!found->is_boolean()) Fail(fmt::format("{}: \"{}\" must be true or false", where, key));
  return found->get<bool>();
}

std::optional<TextOrTokens> ReadText(const json& object, const char* key,
                                     const std::string& where) {
  const auto found = object.find(key);
  if (found == object.end()) return std::nullopt;
  if (found->is_array()) {
    try {
      return TokenIdsOf(*found, fmt::format("\"{}\"", key));
    } catch (const Error& error) {
      Fail(fmt::format("{}: {}", where, error.problem()));
    }
  }
  if (!found->is_string())
    Fail(fmt::format("{}: \"{}\" must be a text or an array of token ids", where, key));
  const auto& text = found->get_ref<const std::string&>();
  if (text.empty()) Fail(fmt::format("{}: \"{}\" is empty; give some text", where, key));
  if (text.find('\0') != std::string::npos)
    Fail(fmt::format("{}: \"{}\" contains NUL; leave it out", where, key));
  return text;
}

EvaluationTurn ReadTurn(const json& object, const std::string& where) {
  if (!object.is_object()) Fail(fmt::format("{}: is not a JSON object", where));
  RefuseUnknown(object, {"prompt", "max_new_tokens", "score", "score_prompt", "pin"}, where);
  EvaluationTurn turn;
  std::optional<TextOrTokens> prompt = ReadText(object, "prompt", where);
  if (!prompt) Fail(fmt::format("{}: \"prompt\" is missing", where));
  turn.prompt = *std::move(prompt);
  turn.score = ReadText(object, "score", where);
  turn.score_prompt = Flag(object, "score_prompt", where);
  turn.pin = Flag(object, "pin", where);
  if (const auto found = object.find("max_new_tokens"); found != object.end()) {
    if (turn.score)
      Fail(fmt::format("{}: \"max_new_tokens\" has no place beside \"score\"; leave out one",
                       where));
    if (!found->is_number_integer() || *found < 0 || *found > INT64_MAX)
      Fail(fmt::format("{}: \"max_new_tokens\" is {}; use a whole number of 0 or more", where,
                       found->dump()));
    turn.max_new_tokens = found->get<std::int64_t>();
  }
  return turn;
}

std::string ReadId(const json& object, const std::string& where) {
  const auto found = object.find("id");
  if (found == object.end()) Fail(fmt::format("{}: \"id\" is missing", where));
  if (found->is_string()) return found->get<std::string>();
  if (found->is_number_integer()) return found->dump();
  Fail(fmt::format("{}: \"id\" must be a text or a whole number", where));
}

EvaluationTask ReadTask(const json& object, std::int64_t line) {
  const std::string where = fmt::format("line {}", line);
  if (!object.is_object()) Fail(fmt::format("{}: is not a JSON object", where));
  RefuseUnknown(object, {"id", "raw", "turns"}, where);
  EvaluationTask task{
      .id = ReadId(object, where), .line = line, .raw = Flag(object, "raw", where), .turns = {}};
  const auto turns = object.find("turns");
  if (turns == object.end() || !turns->is_array() || turns->empty())
    Fail(fmt::format("{}: \"turns\" must be an array with at least one turn", where));
  for (const json& turn : *turns)
    task.turns.push_back(ReadTurn(turn, fmt::format("{}, turn {}", where, task.turns.size() + 1)));
  return task;
}

}  // namespace

std::vector<EvaluationTask> ParseEvaluationTasks(std::string_view text) {
  std::vector<EvaluationTask> tasks;
  for (std::int64_t number = 1; !text.empty(); ++number) {
    const std::string_view line = TakeLine(&text);
    if (IsBlankLine(line)) continue;
    tasks.push_back(ReadTask(json::parse(line, nullptr, /*allow_exceptions=*/false), number));
  }
  if (tasks.empty()) Fail("holds no conversation; give one JSON object a line");
  return tasks;
}

}  // namespace carousel
