// SPDX-License-Identifier: Apache-2.0
#include "text/turn_format.h"

#include <fmt/format.h>

#include <fstream>
#include <nlohmann/json.hpp>

#include "base/check.h"
#include "carousel/error.h"

namespace carousel {
namespace {

using nlohmann::json;

constexpr std::size_t kMaxFileBytes = 1 << 20;

[[noreturn]] void Fail(std::string_view problem) {
  throw Error(ErrorCode::kModel, TurnFormat::kFileName, problem);
}

const json& Member(const json& object, const char* key, std::string_view where) {
  const auto found = object.find(key);
  if (found == object.end()) Fail(fmt::format("{}\"{}\" is missing", where, key));
  return *found;
}

// A text of the file. NUL is refused here, where the file can be named, since no tokenizer takes
// it.
std::string Text(const json& object, const char* key, std::string_view where) {
  const json& value = Member(object, key, where);
  if (!value.is_string())
    Fail(fmt::format("{}\"{}\" is {}, not a text", where, key, value.type_name()));
  const auto& text = value.get_ref<const std::string&>();
  if (text.find('\0') != std::string::npos) Fail(fmt::format("{}\"{}\" contains NUL", where, key));
  return text;
}

bool Flag(const json& object, const char* key) {
  const json& value = Member(object, key, "");
  if (!value.is_boolean())
    Fail(fmt::format("\"{}\" is {}, not true or false", key, value.type_name()));
  return value.get<bool>();
}

const json& RoleObject(const json& roles, const char* name) {
  const json& role = Member(roles, name, "roles: ");
  if (!role.is_object()) Fail(fmt::format("roles: \"{}\" is not an object", name));
  return role;
}

json ParseObject(std::string_view text) {
  json object = json::parse(text, nullptr, /*allow_exceptions=*/false);
  if (object.is_discarded()) Fail("not valid JSON; run tools/prepare_model.py on the model again");
  if (!object.is_object()) Fail("not a JSON object");
  const auto format = object.find("format");
  if (format == object.end() || *format != "carousel-turn-format")
    Fail("\"format\" is not \"carousel-turn-format\"");
  const json& version = Member(object, "version", "");
  if (!version.is_number_integer() || version != 1)
    Fail("this version of carousel reads version 1; run tools/prepare_model.py on the model again");
  return object;
}

std::string_view Trim(std::string_view text) {
  constexpr std::string_view kSpaces = " \t\n\r\f\v";
  const std::size_t begin = text.find_first_not_of(kSpaces);
  if (begin == std::string_view::npos) return "";
  return text.substr(begin, text.find_last_not_of(kSpaces) - begin + 1);
}

void AddMark(const std::string& text, PromptParts* parts) {
  if (text.empty()) return;
  if (parts->empty() || !parts->back().is_mark) parts->push_back({.is_mark = true});
  parts->back().text += text;
}

}  // namespace

TurnFormat TurnFormat::Load(const std::filesystem::path& model_dir) {
  const std::filesystem::path path = model_dir / kFileName;
  std::ifstream file(path, std::ios::binary);
  if (!file)
    Fail(fmt::format("not found in {}; run tools/prepare_model.py on the model's folder",
                     model_dir.string()));
  std::string text(kMaxFileBytes + 1, '\0');
  file.read(text.data(), static_cast<std::streamsize>(text.size()));
  if (file.bad()) Fail(fmt::format("cannot read it in {}", model_dir.string()));
  text.resize(static_cast<std::size_t>(file.gcount()));
  if (text.size() > kMaxFileBytes) Fail(fmt::format("larger than {} bytes", kMaxFileBytes));
  return Parse(text);
}

TurnFormat TurnFormat::Parse(std::string_view text) {
  const json object = ParseObject(text);
  TurnFormat result;
  result.reducible_ = Flag(object, "reducible");
  if (!result.reducible_) {
    result.reason_ = Text(object, "reason", "");
    return result;
  }
  const json& roles = Member(object, "roles", "");
  if (!roles.is_object()) Fail("\"roles\" is not an object");
  const auto role = [&roles](const char* name) {
    const std::string where = fmt::format("roles: {}: ", name);
    const json& object_of_role = RoleObject(roles, name);
    return Role{Text(object_of_role, "before", where), Text(object_of_role, "after", where)};
  };
  if (roles.contains("system")) result.system_ = role("system");
  result.user_ = role("user");
  result.assistant_ = role("assistant");
  result.begin_ = Text(object, "begin", "");
  result.begin_without_system_ = Text(object, "begin_without_system", "");
  result.generation_prompt_ = Text(object, "generation_prompt", "");
  result.end_of_turn_ = Text(object, "end_of_turn", "");
  result.trim_ = Flag(object, "trim");
  return result;
}

void TurnFormat::AddMessage(const Role& role, std::string_view content, PromptParts* parts) const {
  AddMark(role.before, parts);
  if (trim_) content = Trim(content);
  if (!content.empty()) parts->push_back({.text = std::string(content)});
  AddMark(role.after, parts);
}

PromptParts TurnFormat::Beginning(const std::optional<std::string>& system) const {
  CAROUSEL_CHECK(reducible_);
  if (system && !system_)
    throw Error(
        ErrorCode::kInvalidArgument, "system",
        "this model's chat template has no system message; put the text into the first turn");
  PromptParts parts;
  AddMark(system ? begin_ : begin_without_system_, &parts);
  if (system) AddMessage(*system_, *system, &parts);
  return parts;
}

PromptParts TurnFormat::FirstTurn(const std::optional<std::string>& system,
                                  std::string_view user) const {
  PromptParts parts = Beginning(system);
  AddMessage(user_, user, &parts);
  AddMark(generation_prompt_, &parts);
  return parts;
}

PromptParts TurnFormat::NextTurn(std::string_view user) const {
  CAROUSEL_CHECK(reducible_);
  PromptParts parts;
  AddMark(assistant_.after, &parts);
  AddMessage(user_, user, &parts);
  AddMark(generation_prompt_, &parts);
  return parts;
}

}  // namespace carousel
