// SPDX-License-Identifier: Apache-2.0
#include "text/turn_format.h"

#include <fmt/format.h>

#include <algorithm>
#include <fstream>
#include <nlohmann/json.hpp>
#include <utility>

#include "base/check.h"
#include "base/utf8.h"
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
std::string TextOf(const json& value, const char* key, std::string_view where) {
  if (!value.is_string())
    Fail(fmt::format("{}\"{}\" is {}, not a text", where, key, value.type_name()));
  const auto& text = value.get_ref<const std::string&>();
  if (text.find('\0') != std::string::npos) Fail(fmt::format("{}\"{}\" contains NUL", where, key));
  return text;
}

std::string Text(const json& object, const char* key, std::string_view where) {
  return TextOf(Member(object, key, where), key, where);
}

bool Flag(const json& object, const char* key, std::string_view where) {
  const json& value = Member(object, key, where);
  if (!value.is_boolean())
    Fail(fmt::format("{}\"{}\" is {}, not true or false", where, key, value.type_name()));
  return value.get<bool>();
}

const json& List(const json& object, const char* key, std::string_view where) {
  const json& value = Member(object, key, where);
  if (!value.is_array())
    Fail(fmt::format("{}\"{}\" is {}, not a list", where, key, value.type_name()));
  return value;
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
  if (!version.is_number_integer() || (version != 1 && version != 2))
    Fail(
        fmt::format("is of version {}, and this carousel reads 1 and 2; run tools/prepare_model.py "
                    "on the model again",
                    version.dump()));
  return object;
}

// What Python's str.strip takes off.
bool IsStripped(char32_t character) {
  return IsSpace(character) || (character >= 0x1C && character <= 0x1F);
}

std::string_view TrimLeft(std::string_view text) {
  while (!text.empty()) {
    const Utf8Unit unit = FirstUtf8Unit(text);
    if (unit.kind != Utf8Unit::Kind::kCharacter || !IsStripped(unit.code_point)) break;
    text.remove_prefix(unit.bytes);
  }
  return text;
}

std::string_view TrimRight(std::string_view text) {
  std::size_t end = 0;
  for (std::size_t begin = 0; begin < text.size();) {
    const Utf8Unit unit = FirstUtf8Unit(text.substr(begin));
    begin += unit.bytes;
    if (unit.kind != Utf8Unit::Kind::kCharacter || !IsStripped(unit.code_point)) end = begin;
  }
  return text.substr(0, end);
}

// Small letters and capitals of ASCII are the same.
bool Contains(std::string_view text, std::string_view word) {
  const auto lower = [](char letter) {
    return letter >= 'A' && letter <= 'Z' ? static_cast<char>(letter - 'A' + 'a') : letter;
  };
  const auto same = [&](char a, char b) { return lower(a) == lower(b); };
  return std::search(text.begin(), text.end(), word.begin(), word.end(), same) != text.end();
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

// What is read of the file's objects.
struct TurnFormat::Reader {
  static std::string Layout(const json& part, const char* key, std::string_view where) {
    std::string layout = Text(part, "date", fmt::format("{}\"{}\": ", where, key));
    if (!IsDateLayout(layout))
      Fail(fmt::format("{}\"{}\": the date's layout {} is not known", where, key,
                       json(layout).dump()));
    return layout;
  }

  // A text, or a list of texts and of dates.
  static Mark ReadMark(const json& object, const char* key, std::string_view where) {
    const json& value = Member(object, key, where);
    if (!value.is_array()) return {{.text = TextOf(value, key, where)}};
    Mark mark;
    for (const json& part : value) {
      if (part.is_object())
        mark.push_back({.text = Layout(part, key, where), .is_date = true});
      else
        mark.push_back({.text = TextOf(part, key, where)});
    }
    return mark;
  }

  static void ReadLimits(const json& object, std::string_view where, Role* role) {
    const std::string trim = Text(object, "trim", where);
    if (trim != "none" && trim != "left" && trim != "right" && trim != "both")
      Fail(fmt::format("{}\"trim\" is not none, left, right or both", where));
    role->trims_left = trim == "left" || trim == "both";
    role->trims_right = trim == "right" || trim == "both";
    role->takes_blank = Flag(object, "blank", where);
    for (const json& word : List(object, "refused_words", where)) {
      role->refused_words.push_back(TextOf(word, "refused_words", where));
      if (role->refused_words.back().empty())
        Fail(fmt::format("{}\"refused_words\" has an empty one", where));
    }
  }

  // A role of either version; `trims` is what version 1 says for all roles.
  static Role ReadRole(const json& roles, const char* name, std::optional<bool> trims) {
    const std::string where = fmt::format("roles: {}: ", name);
    const json& object = RoleObject(roles, name);
    Role role{.before = ReadMark(object, "before", where),
              .after = ReadMark(object, "after", where)};
    if (trims)
      role.trims_left = role.trims_right = *trims;
    else
      ReadLimits(object, where, &role);
    return role;
  }
};

TurnFormat TurnFormat::Parse(std::string_view text, DateSource date) {
  const json object = ParseObject(text);
  TurnFormat result;
  result.date_ = std::move(date);
  result.reducible_ = Flag(object, "reducible", "");
  if (!result.reducible_) {
    result.reason_ = Text(object, "reason", "");
    return result;
  }
  const json& roles = Member(object, "roles", "");
  if (!roles.is_object()) Fail("\"roles\" is not an object");
  const bool is_old = object["version"] == 1;
  std::optional<bool> trims;
  if (is_old) trims = Flag(object, "trim", "");
  result.user_ = Reader::ReadRole(roles, "user", trims);
  result.assistant_after_ =
      Reader::ReadMark(RoleObject(roles, "assistant"), "after", "roles: assistant: ");
  if (roles.contains("system")) {
    result.system_ = Reader::ReadRole(roles, "system", trims);
    if (!is_old)
      result.system_opens_user_turn_ = Flag(roles["system"], "opens_user_turn", "roles: system: ");
  }
  if (is_old) {
    const Mark begin = Reader::ReadMark(object, "begin", "");
    if (result.system_)
      result.system_->before.insert(result.system_->before.begin(), begin.begin(), begin.end());
  }
  result.begin_without_system_ = Reader::ReadMark(object, "begin_without_system", "");
  result.generation_prompt_ = Reader::ReadMark(object, "generation_prompt", "");
  result.end_of_turn_ = Text(object, "end_of_turn", "");
  return result;
}

void TurnFormat::CheckContent(const Role& role, std::string_view content,
                              std::string_view field) const {
  if (!role.takes_blank && TrimLeft(content).empty()) {
    throw Error(ErrorCode::kInvalidArgument, field,
                "has no words, where this model's chat template writes something of its own; leave "
                "it out, or write some");
  }
  for (const std::string& word : role.refused_words) {
    if (!Contains(content, word)) continue;
    throw Error(
        ErrorCode::kInvalidArgument, field,
        fmt::format("has \"{}\" in it, which this model's chat template takes for a command "
                    "or a mark; write it otherwise, or use carousel generate --raw",
                    word));
  }
}

void TurnFormat::AddMark(const Mark& mark, PromptParts* parts) const {
  for (const MarkPart& part : mark) {
    const std::string text = part.is_date ? FormatDate(part.text, date_()) : part.text;
    if (text.empty()) continue;
    if (parts->empty() || !parts->back().is_mark) parts->push_back({.is_mark = true});
    parts->back().text += text;
  }
}

void TurnFormat::AddContent(const Role& role, std::string_view content, PromptParts* parts) const {
  if (role.trims_left) content = TrimLeft(content);
  if (role.trims_right) content = TrimRight(content);
  if (!content.empty()) parts->push_back({.text = std::string(content)});
}

// The user's turn, whose mark in front is there already if it `is_opened`, up to the answer.
void TurnFormat::AddUser(bool is_opened, std::string_view user, PromptParts* parts) const {
  CheckContent(user_, user, "message");
  if (!is_opened) AddMark(user_.before, parts);
  AddContent(user_, user, parts);
  AddMark(user_.after, parts);
  AddMark(generation_prompt_, parts);
}

PromptParts TurnFormat::Beginning(const std::optional<std::string>& system) const {
  CAROUSEL_CHECK(reducible_);
  PromptParts parts;
  if (!system) {
    AddMark(begin_without_system_, &parts);
    return parts;
  }
  if (!system_)
    throw Error(
        ErrorCode::kInvalidArgument, "system",
        "this model's chat template has no system message; put the text into the first turn");
  CheckContent(*system_, *system, "system");
  AddMark(system_->before, &parts);
  AddContent(*system_, *system, &parts);
  AddMark(system_->after, &parts);
  return parts;
}

PromptParts TurnFormat::FirstTurn(const std::optional<std::string>& system,
                                  std::string_view user) const {
  PromptParts parts = Beginning(system);
  AddUser(system && system_opens_user_turn_, user, &parts);
  return parts;
}

PromptParts TurnFormat::NextTurn(std::string_view user) const {
  CAROUSEL_CHECK(reducible_);
  PromptParts parts;
  AddMark(assistant_after_, &parts);
  AddUser(/*is_opened=*/false, user, &parts);
  return parts;
}

}  // namespace carousel
