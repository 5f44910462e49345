// SPDX-License-Identifier: Apache-2.0
#include "api/batch_line.h"

#include <gtest/gtest.h>

#include <nlohmann/json.hpp>

namespace carousel {
namespace {

using nlohmann::json;

const BatchDefaults kDefaults{
    .sampling = {.temperature = 0.5}, .stops = {"END"}, .max_new_tokens = 99};

BatchLine Read(const std::string& text) { return ReadBatchLine(text, 3, kDefaults); }

std::string ProblemOf(const std::string& text) {
  const BatchLine line = Read(text);
  EXPECT_FALSE(line.request);
  return line.problem;
}

TEST(BatchLine, PlainPrompt) {
  const BatchLine line = Read(R"({"custom_id":"a","prompt":"Hi"})");
  ASSERT_TRUE(line.request) << line.problem;
  EXPECT_EQ(line.form, BatchForm::kPlain);
  EXPECT_EQ(line.custom_id, "a");
  EXPECT_EQ(std::get<std::string>(line.request->prompt), "Hi");
  EXPECT_FALSE(line.request->raw);
  EXPECT_EQ(line.request->sampling.temperature, 0.5);
  EXPECT_EQ(line.request->stops, (std::vector<std::string>{"END"}));
  EXPECT_EQ(line.request->max_new_tokens, 99);
  EXPECT_FALSE(line.request->ignore_end_tokens);
}

TEST(BatchLine, PlainSettings) {
  const BatchLine line =
      Read(R"({"custom_id":7,"prompt":[3,4],"max_tokens":5,"temperature":0,"top_k":2,"seed":9,)"
           R"("stop":["x","y"],"ignore_eos":true,"repetition_penalty":1.5})");
  ASSERT_TRUE(line.request) << line.problem;
  EXPECT_EQ(line.custom_id, "7");
  EXPECT_EQ(std::get<std::vector<TokenId>>(line.request->prompt), (std::vector<TokenId>{3, 4}));
  EXPECT_EQ(line.request->max_new_tokens, 5);
  EXPECT_EQ(line.request->sampling.temperature, 0.0);
  EXPECT_EQ(line.request->sampling.top_k, 2);
  EXPECT_EQ(line.request->sampling.seed, std::uint64_t{9});
  EXPECT_EQ(line.request->sampling.repetition_penalty, 1.5);
  EXPECT_EQ(line.request->stops, (std::vector<std::string>{"x", "y"}));
  EXPECT_TRUE(line.request->ignore_end_tokens);
}

TEST(BatchLine, ChatOfOpenAi) {
  const BatchLine line = Read(
      R"({"custom_id":"q-1","method":"POST","url":"/v1/chat/completions","body":{"model":"m",)"
      R"("messages":[{"role":"developer","content":"Be brief."},{"role":"user","content":)"
      R"([{"type":"text","text":"Hel"},{"type":"text","text":"lo"}]}],"max_completion_tokens":8,)"
      R"("n":1,"stream":false,"user":"someone","tools":[],"response_format":{"type":"text"}}})");
  ASSERT_TRUE(line.request) << line.problem;
  EXPECT_EQ(line.form, BatchForm::kChatCompletion);
  const auto& messages = std::get<std::vector<Message>>(line.request->prompt);
  ASSERT_EQ(messages.size(), std::size_t{2});
  EXPECT_EQ(messages[0].role, "system");
  EXPECT_EQ(messages[1].content, "Hello");
  EXPECT_EQ(line.request->max_new_tokens, 8);
}

TEST(BatchLine, CompletionOfOpenAiIsRaw) {
  const BatchLine line =
      Read(R"({"custom_id":"c","url":"/v1/completions","body":{"prompt":"Once","echo":false}})");
  ASSERT_TRUE(line.request) << line.problem;
  EXPECT_EQ(line.form, BatchForm::kCompletion);
  EXPECT_TRUE(line.request->raw);
}

TEST(BatchLine, EachProblemNamesItsMember) {
  EXPECT_EQ(ProblemOf("{"), "line 3 is not a JSON object");
  EXPECT_EQ(ProblemOf("[1]"), "line 3 is not a JSON object");
  const std::pair<const char*, const char*> cases[] = {
      {R"({"prompt":"x"})", "custom_id: is missing"},
      {R"({"custom_id":[1],"prompt":"x"})", "custom_id: [1] is neither"},
      {R"({"custom_id":"a"})", "prompt: is missing"},
      {R"({"custom_id":"a","prompt":"x","messages":[{"role":"user","content":"y"}]})",
       "prompt: has no place beside messages"},
      {R"({"custom_id":"a","prompt":""})", "prompt: is empty"},
      {R"({"custom_id":"a","prompt":[]})", "prompt"},
      {R"({"custom_id":"a","prompt":"x\u0000y"})", "prompt"},
      {R"({"custom_id":"a","promt":"x"})", "promt: is unknown"},
      {R"({"custom_id":"a","prompt":"x","max_tokens":0})", "max_tokens: 0 is not"},
      {R"({"custom_id":"a","prompt":"x","max_tokens":1e30})", "max_tokens"},
      {R"({"custom_id":"a","prompt":"x","temperature":"hot"})", "temperature: \"hot\" is not"},
      {R"({"custom_id":"a","prompt":"x","temperature":-1})", "temperature"},
      {R"({"custom_id":"a","prompt":"x","stop":""})", "stop"},
      {R"({"custom_id":"a","prompt":"x","ignore_eos":1})", "ignore_eos: 1 is not"},
      {R"({"custom_id":"a","messages":[]})", "messages"},
      {R"({"custom_id":"a","messages":[{"content":"x"}]})", "messages[0]: has no \"role\""},
      {R"({"custom_id":"a","messages":[{"role":"tool","content":"x"}]})",
       "messages[0].role: tool is unknown"},
      {R"({"custom_id":"a","url":"/v1/embeddings","body":{}})", "url: \"/v1/embeddings\""},
      {R"({"custom_id":"a","url":"/v1/completions","method":"GET","body":{}})", "method"},
      {R"({"custom_id":"a","url":"/v1/completions"})", "body: is missing"},
      {R"({"custom_id":"a","url":"/v1/completions","body":{"prompt":"x","n":0}})", "n: 0 is not"},
      {R"({"custom_id":"a","url":"/v1/completions","body":{"prompt":["x","y"]}})",
       "prompt: is a list of texts"},
      {R"({"custom_id":"a","url":"/v1/chat/completions","body":{"messages":[{"role":"user",)"
       R"("content":[{"type":"image_url"}]}]}})",
       "messages[0].content: has a part"},
      {R"({"custom_id":"a","url":"/v1/chat/completions","body":{"messages":[{"role":"user",)"
       R"("content":"x"}],"tools":[{}]}})",
       "tools: is not supported"},
      {R"({"custom_id":"a","url":"/v1/completions","body":{"prompt":"x","num_beams":4}})",
       "num_beams: is not supported"},
      {R"({"custom_id":"a","prompt":"x","num_beams":4})", "num_beams: is unknown"},
      {R"({"custom_id":"a","url":"/v1/completions","body":{"prompt":"x","response_format":)"
       R"({"type":5}}})",
       "response_format: is not supported"}};
  for (const auto& [text, problem] : cases)
    EXPECT_EQ(ProblemOf(text).find(problem), std::size_t{0}) << text << "\n" << ProblemOf(text);
}

Answer Said() {
  Answer answer;
  answer.text = "Yes.";
  answer.tokens.resize(3);
  answer.prompt_tokens = 11;
  answer.finish_reason = FinishReason::kStop;
  return answer;
}

TEST(BatchLine, WritesPlainAnswers) {
  SequenceMetrics metrics;
  metrics.logical_tokens = 14;
  metrics.resident_tokens = 12;
  metrics.evicted_tokens = 2;
  metrics.recalled_blocks = 5;
  const Answer said = Said();
  const json line =
      AnswerLine(Read(R"({"custom_id":"a","prompt":"x"})"), {&said, 1}, metrics, "tiny", 1);
  EXPECT_EQ(line,
            json::parse(R"({"custom_id":"a","text":"Yes.","finish_reason":"stop","usage":)"
                        R"({"prompt_tokens":11,"completion_tokens":3,"cached_tokens":0},"kv":)"
                        R"({"logical_tokens":14,"resident_tokens":12,"evicted_tokens":2,)"
                        R"("recalled_blocks":5}})"));
}

TEST(BatchLine, WritesOpenAisAnswers) {
  const std::vector<Answer> two(2, Said());
  const json line = AnswerLine(Read(R"({"custom_id":"a","url":"/v1/chat/completions","body":)"
                                    R"({"messages":[{"role":"user","content":"x"}]}})"),
                               two, {}, "tiny", 17);
  EXPECT_EQ(line["custom_id"], "a");
  EXPECT_EQ(line["error"], nullptr);
  EXPECT_EQ(line["response"]["status_code"], 200);
  const json& body = line["response"]["body"];
  EXPECT_EQ(body["object"], "chat.completion");
  EXPECT_EQ(body["created"], 17);
  EXPECT_EQ(body["choices"][0]["message"]["content"], "Yes.");
  EXPECT_EQ(body["choices"][0]["finish_reason"], "stop");
  EXPECT_EQ(body["choices"].size(), std::size_t{2});
  EXPECT_EQ(body["choices"][1]["index"], 1);
  EXPECT_EQ(body["usage"]["total_tokens"], 17);
}

TEST(BatchLine, WritesErrors) {
  const json plain = ErrorLine(Read(R"({"custom_id":"a"})"), "prompt: is missing", false);
  EXPECT_EQ(plain["custom_id"], "a");
  EXPECT_EQ(plain["error"]["message"], "prompt: is missing");
  const json nameless = ErrorLine(Read("nonsense"), "line 3 is not a JSON object", false);
  EXPECT_EQ(nameless["custom_id"], nullptr);
  const json theirs = ErrorLine(Read(R"({"custom_id":"a","url":"/x"})"), "url: unknown", false);
  EXPECT_EQ(theirs["response"]["status_code"], 400);
  EXPECT_EQ(theirs["response"]["body"]["error"]["message"], "url: unknown");
}

}  // namespace
}  // namespace carousel
