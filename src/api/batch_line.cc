// SPDX-License-Identifier: Apache-2.0
#include "api/batch_line.h"

#include <fmt/format.h>

#include <algorithm>
#include <array>
#include <nlohmann/json.hpp>

#include "answers/prompt_file.h"
#include "answers/settings_json.h"
#include "base/utf8.h"
#include "carousel/error.h"
#include "text/stop_strings.h"
#include "text/text_pieces.h"

namespace carousel {
namespace {

using nlohmann::json;
using nlohmann::ordered_json;

constexpr std::string_view kChatUrl = "/v1/chat/completions";
constexpr std::string_view kCompletionUrl = "/v1/completions";
// As SamplingParams' settings are called in JSON.
constexpr std::array kSamplingMembers = {"temperature",
                                         "top_p",
                                         "top_k",
                                         "min_p",
                                         "presence_penalty",
                                         "frequency_penalty",
                                         "repetition_penalty",
                                         "penalty_window",
                                         "seed"};
constexpr std::array kLengthMembers = {"max_tokens", "max_completion_tokens", "max_new_tokens"};

[[noreturn]] void Refuse(std::string_view member, std::string_view problem) {
  throw Error(ErrorCode::kInvalidArgument, member, problem);
}

// A member that is there and not null.
const json* Find(const json& object, std::string_view member) {
  const auto found = object.find(member);
  return found == object.end() || found->is_null() ? nullptr : &*found;
}

std::string TextOf(const json& value, std::string_view member) {
  if (!value.is_string()) Refuse(member, fmt::format("{} is not a text", value.dump()));
  std::string text = value.get<std::string>();
  ValidateText(text, member, 0);
  return text;
}

bool FlagOf(const json& object, std::string_view member) {
  const json* value = Find(object, member);
  if (value == nullptr) return false;
  if (!value->is_boolean()) Refuse(member, fmt::format("{} is not true or false", value->dump()));
  return value->get<bool>();
}

// A message's content: a text, or a list of parts that are all text.
std::string ContentOf(const json& message, const std::string& where) {
  const json* content = Find(message, "content");
  if (content == nullptr) return "";
  if (!content->is_array()) return TextOf(*content, where + ".content");
  std::string text;
  for (const json& part : *content) {
    const json* type = part.is_object() ? Find(part, "type") : nullptr;
    const json* words = part.is_object() ? Find(part, "text") : nullptr;
    if (type == nullptr || *type != "text" || words == nullptr)
      Refuse(where + ".content", "has a part that is no text; give text alone");
    text += TextOf(*words, where + ".content");
  }
  return text;
}

std::vector<Message> MessagesOf(const json& value) {
  if (!value.is_array() || value.empty()) Refuse("messages", "is not a list of messages");
  std::vector<Message> messages;
  for (const json& message : value) {
    const std::string where = fmt::format("messages[{}]", messages.size());
    if (!message.is_object()) Refuse(where, "is not an object; give \"role\" and \"content\"");
    const json* role = Find(message, "role");
    if (role == nullptr) Refuse(where, "has no \"role\"; use system, user or assistant");
    messages.push_back(
        {.role = TextOf(*role, where + ".role"), .content = ContentOf(message, where)});
    std::string& name = messages.back().role;
    if (name == "developer") name = "system";  // as newer clients call it
    if (name != "system" && name != "user" && name != "assistant")
      Refuse(where + ".role", fmt::format("{} is unknown; use system, user or assistant", name));
  }
  return messages;
}

std::int64_t LengthOf(const json& object, std::int64_t otherwise) {
  for (const char* member : kLengthMembers) {
    const json* value = Find(object, member);
    if (value == nullptr) continue;
    const bool fits = value->is_number_integer() && *value > 0 && *value <= INT64_MAX;
    if (!fits) Refuse(member, fmt::format("{} is not a whole number above 0", value->dump()));
    return value->get<std::int64_t>();
  }
  return otherwise;
}

SamplingParams SamplingOf(const json& object, const SamplingParams& defaults) {
  json given = json::object();
  for (const char* member : kSamplingMembers) {
    if (const json* value = Find(object, member)) given[member] = *value;
  }
  SamplingParams params = defaults;
  ReadSamplingSettings(given, &params);
  Validate(params);
  return params;
}

std::int64_t AnswersOf(const json& body) {
  const json* n = Find(body, "n");
  if (n == nullptr) return 1;
  if (!n->is_number_integer() || *n < 1 || *n > kMostAnswers)
    Refuse("n", fmt::format("{} is not a whole number from 1 to {}", n->dump(), kMostAnswers));
  return n->get<std::int64_t>();
}

std::vector<std::string> StopsOf(const json& object, const std::vector<std::string>& defaults) {
  const json* stop = Find(object, "stop");
  if (stop == nullptr) return defaults;
  std::vector<std::string> stops;
  if (stop->is_array()) {
    for (const json& text : *stop) stops.push_back(TextOf(text, "stop"));
  } else {
    stops.push_back(TextOf(*stop, "stop"));
  }
  const StopStringMatcher matcher(stops);  // throws for an empty one
  return stops;
}

// What a request to either of OpenAI's addresses would have answered otherwise.
void RefuseUnsupported(const json& body) {
  constexpr std::array kUnsupported = {
      "tools", "functions", "response_format", "logit_bias", "logprobs", "top_logprobs", "suffix",
      "audio",
      // Of beam searches, as other servers call them.
      "num_beams", "num_beam_groups", "diversity_penalty", "length_penalty", "num_return_sequences",
      "no_repeat_ngram_size", "stop_criteria", "beam_width", "use_beam_search", "early_stopping"};
  for (const char* member : kUnsupported) {
    const json* value = Find(body, member);
    if (value == nullptr || *value == false || value->empty()) continue;
    const json* type = value->is_object() ? Find(*value, "type") : nullptr;
    if (std::string_view(member) == "response_format" && type != nullptr && *type == "text")
      continue;
    Refuse(member, "is not supported in a batch; leave it out");
  }
  const json* best_of = Find(body, "best_of");
  if (best_of != nullptr && *best_of != 1) Refuse("best_of", "is not supported; use n");
  if (FlagOf(body, "echo")) Refuse("echo", "is not supported in a batch; leave it out");
}

void RefuseUnknown(const json& object) {
  std::vector<std::string_view> known = {"custom_id", "prompt",     "messages",
                                         "stop",      "ignore_eos", "model"};
  known.insert(known.end(), kSamplingMembers.begin(), kSamplingMembers.end());
  known.insert(known.end(), kLengthMembers.begin(), kLengthMembers.end());
  for (const auto& [member, value] : object.items()) {
    if (std::find(known.begin(), known.end(), member) == known.end())
      Refuse(member, fmt::format("is unknown; known are {}", fmt::join(known, ", ")));
  }
}

void ReadPrompt(const json& object, BatchForm form, const BatchDefaults& defaults,
                BatchRequest* request) {
  const json* prompt = Find(object, "prompt");
  const json* messages = Find(object, "messages");
  if (form == BatchForm::kChatCompletion) prompt = nullptr;
  if (form == BatchForm::kCompletion) messages = nullptr;
  if ((prompt == nullptr) == (messages == nullptr)) {
    const std::string_view wanted = form == BatchForm::kChatCompletion ? "messages" : "prompt";
    Refuse(wanted, prompt == nullptr ? "is missing" : "has no place beside messages; give one");
  }
  if (messages != nullptr) {
    request->prompt = MessagesOf(*messages);
    return;
  }
  request->raw = defaults.raw || form == BatchForm::kCompletion;
  if (prompt->is_array()) {
    if (!prompt->empty() && prompt->front().is_string())
      Refuse("prompt", "is a list of texts; give a line for each");
    request->prompt = TokenIdsOf(*prompt, "\"prompt\"");
    return;
  }
  std::string text = TextOf(*prompt, "prompt");
  if (text.empty()) Refuse("prompt", "is empty; give some text");
  request->prompt = std::move(text);
}

// `body` is the line itself where the line is plain.
BatchRequest ReadRequest(const json& body, BatchForm form, const BatchDefaults& defaults) {
  if (!body.is_object()) Refuse("body", "is not a JSON object");
  if (form == BatchForm::kPlain) {
    RefuseUnknown(body);
  } else {
    RefuseUnsupported(body);
  }
  BatchRequest request{.prompt = {},
                       .sampling = SamplingOf(body, defaults.sampling),
                       .stops = StopsOf(body, defaults.stops),
                       .max_new_tokens = LengthOf(body, defaults.max_new_tokens),
                       .ignore_end_tokens = FlagOf(body, "ignore_eos")};
  if (form != BatchForm::kPlain) request.answers = AnswersOf(body);
  ReadPrompt(body, form, defaults, &request);
  return request;
}

std::optional<std::string> ReadCustomId(const json& object) {
  const json* id = Find(object, "custom_id");
  if (id == nullptr) return std::nullopt;
  if (id->is_string()) return id->get<std::string>();
  return id->dump();
}

bool IsOfOpenAi(const json& object) { return object.contains("url") || object.contains("body"); }

BatchForm FormOf(const json& object) {
  if (!IsOfOpenAi(object)) return BatchForm::kPlain;
  const json* url = Find(object, "url");
  return url != nullptr && *url == kCompletionUrl ? BatchForm::kCompletion
                                                  : BatchForm::kChatCompletion;
}

BatchRequest ReadLine(const json& object, BatchForm form, const BatchDefaults& defaults) {
  const json* id = Find(object, "custom_id");
  if (id == nullptr) Refuse("custom_id", "is missing; give each line one of its own");
  if (!id->is_string() && !id->is_number_integer())
    Refuse("custom_id", fmt::format("{} is neither a text nor a whole number", id->dump()));
  if (form == BatchForm::kPlain) return ReadRequest(object, form, defaults);
  const json* url = Find(object, "url");
  if (url == nullptr || (*url != kChatUrl && *url != kCompletionUrl))
    Refuse("url", fmt::format("{} is unknown; use {} or {}", url == nullptr ? "null" : url->dump(),
                              kChatUrl, kCompletionUrl));
  if (const json* method = Find(object, "method"); method != nullptr && *method != "POST")
    Refuse("method", fmt::format("{} is not POST", method->dump()));
  const json* body = Find(object, "body");
  if (body == nullptr) Refuse("body", "is missing");
  return ReadRequest(*body, form, defaults);
}

}  // namespace

BatchLine ReadBatchLine(std::string_view line, std::int64_t number, const BatchDefaults& defaults) {
  BatchLine read{.number = number};
  if (const auto invalid = FindInvalidUtf8(line)) {
    read.problem = fmt::format(
        "line {} is not valid UTF-8 (0x{:02x} at byte {} of it); convert it to UTF-8 first", number,
        static_cast<unsigned char>(line[*invalid]), *invalid);
    return read;
  }
  const json object = json::parse(line, nullptr, /*allow_exceptions=*/false);
  if (!object.is_object()) {
    read.problem = fmt::format("line {} is not a JSON object", number);
    return read;
  }
  read.form = FormOf(object);
  read.custom_id = ReadCustomId(object);
  try {
    read.request = ReadLine(object, read.form, defaults);
  } catch (const Error& error) {
    read.problem = error.what();
  }
  return read;
}

std::optional<std::string> CustomIdOf(std::string_view line) {
  const json object = json::parse(line, nullptr, /*allow_exceptions=*/false);
  return object.is_object() ? ReadCustomId(object) : std::nullopt;
}

OutputPiece PieceOf(std::string_view text) {
  const json object = json::parse(text, nullptr, /*allow_exceptions=*/false);
  const auto has = [&](const char* member) { return object.contains(member); };
  if (object.is_object() && has("custom_id") && (has("text") || has("response") || has("error")))
    return OutputPiece::kLine;
  if (!object.is_discarded()) return OutputPiece::kNeither;  // a whole of something else
  for (const std::string_view beginning : {R"({"custom_id":)", R"({"id":"batch_req_)"}) {
    if (text.starts_with(beginning) || beginning.starts_with(text)) return OutputPiece::kBeginning;
  }
  return OutputPiece::kNeither;
}

namespace {

ordered_json IdOf(const BatchLine& line) {
  return line.custom_id ? ordered_json(*line.custom_id) : ordered_json(nullptr);
}

std::string_view ReasonOf(FinishReason reason) {
  // A deadline or a cancelled request cuts an answer short, as its length does.
  return reason == FinishReason::kStop ? "stop" : "length";
}

ordered_json UsageOf(const Answer& answer, const SequenceMetrics& metrics) {
  return {{"prompt_tokens", answer.prompt_tokens},
          {"completion_tokens", answer.tokens.size()},
          {"cached_tokens", metrics.reused_tokens}};
}

ordered_json KvOf(const SequenceMetrics& metrics) {
  return {{"logical_tokens", metrics.logical_tokens},
          {"resident_tokens", metrics.resident_tokens},
          {"evicted_tokens", metrics.evicted_tokens},
          {"recalled_blocks", metrics.recalled_blocks}};
}

ordered_json ChoiceOf(bool is_chat, const Answer& answer, std::size_t index) {
  ordered_json choice{{"index", index}};
  if (is_chat) {
    choice["message"] = {{"role", "assistant"}, {"content", answer.text}};
  } else {
    choice["text"] = answer.text;
  }
  choice["logprobs"] = nullptr;
  choice["finish_reason"] = ReasonOf(answer.finish_reason);
  return choice;
}

// The body of OpenAI's answer.
ordered_json CompletionOf(const BatchLine& line, std::span<const Answer> answers,
                          const SequenceMetrics& metrics, std::string_view model,
                          std::int64_t created) {
  const bool is_chat = line.form == BatchForm::kChatCompletion;
  ordered_json choices = ordered_json::array();
  std::int64_t completion = 0;
  for (const Answer& answer : answers) {
    choices.push_back(ChoiceOf(is_chat, answer, choices.size()));
    completion += std::ssize(answer.tokens);
  }
  const std::int64_t prompt = answers.front().prompt_tokens;
  return {{"id", fmt::format("{}-{}", is_chat ? "chatcmpl" : "cmpl", line.number)},
          {"object", is_chat ? "chat.completion" : "text_completion"},
          {"created", created},
          {"model", model},
          {"choices", std::move(choices)},
          {"usage",
           {{"prompt_tokens", prompt},
            {"completion_tokens", completion},
            {"total_tokens", prompt + completion},
            {"prompt_tokens_details", {{"cached_tokens", metrics.reused_tokens}}}}},
          {"kv", KvOf(metrics)}};
}

ordered_json ResponseLine(const BatchLine& line, int status, ordered_json body) {
  return {{"id", fmt::format("batch_req_{}", line.number)},
          {"custom_id", IdOf(line)},
          {"response",
           {{"status_code", status},
            {"request_id", fmt::format("req_{}", line.number)},
            {"body", std::move(body)}}},
          {"error", nullptr}};
}

}  // namespace

ordered_json AnswerLine(const BatchLine& line, std::span<const Answer> answers,
                        const SequenceMetrics& metrics, std::string_view model,
                        std::int64_t created) {
  if (line.form != BatchForm::kPlain)
    return ResponseLine(line, 200, CompletionOf(line, answers, metrics, model, created));
  const Answer& answer = answers.front();
  return {{"custom_id", IdOf(line)},
          {"text", answer.text},
          {"finish_reason", Name(answer.finish_reason)},
          {"usage", UsageOf(answer, metrics)},
          {"kv", KvOf(metrics)}};
}

ordered_json ErrorLine(const BatchLine& line, std::string_view problem, bool is_ours) {
  const char* type = is_ours ? "server_error" : "invalid_request_error";
  if (line.form == BatchForm::kPlain)
    return {{"custom_id", IdOf(line)}, {"error", {{"code", type}, {"message", problem}}}};
  return ResponseLine(
      line, is_ours ? 500 : 400,
      {{"error", {{"message", problem}, {"type", type}, {"param", nullptr}, {"code", nullptr}}}});
}

}  // namespace carousel
