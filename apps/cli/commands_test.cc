// SPDX-License-Identifier: Apache-2.0
// The commands end to end over a tiny model. tests/cli runs the real program.
#include "cli/commands.h"

#include <gtest/gtest.h>
#include <pty.h>
#include <termios.h>
#include <unistd.h>

#include <algorithm>
#include <cmath>
#include <nlohmann/json.hpp>
#include <sstream>

#include "config/setting_table.h"
#include "testing/tiny_backend.h"

namespace carousel {
namespace {

using nlohmann::json;

std::vector<json> Lines(const std::string& text) {
  std::vector<json> lines;
  std::istringstream stream(text);
  for (std::string line; std::getline(stream, line);) lines.push_back(json::parse(line));
  return lines;
}

std::string LongText() {
  std::string text;
  for (int i = 0; i < 150; ++i) text += "Going over the hill, number " + std::to_string(i) + ".\n";
  return text;
}

const std::vector<std::string> kSmallCache = {"--start-size",     "32",     "--recent-size", "32",
                                              "--max-cache-size", "128",    "--chunk",       "64",
                                              "--positions",      "compact"};

std::vector<std::string> With(std::vector<std::string> arguments,
                              const std::vector<std::string>& more) {
  arguments.insert(arguments.end(), more.begin(), more.end());
  return arguments;
}

TEST_F(ProgramTest, StreamReportsSegmentsAndASummary) {
  const std::string text = Put("text.txt", LongText());
  const ProgramResult result = Run(With(
      {"stream", "--text", text, "--segment", "1000", "--json", Path("out.jsonl")}, kSmallCache));
  ASSERT_EQ(result.status, 0) << result.err;
  EXPECT_EQ(result.err, "");
  EXPECT_NE(result.out.find("perplexity"), std::string::npos);
  const std::vector<json> lines = Lines(Get("out.jsonl"));
  ASSERT_GE(lines.size(), 3U);
  std::int64_t begin = 0;
  double nll_sum = 0;
  for (std::size_t i = 0; i + 1 < lines.size(); ++i) {
    EXPECT_EQ(lines[i]["type"], "segment");
    EXPECT_EQ(lines[i]["tokens_begin"], begin);
    begin = lines[i]["tokens_end"];
    EXPECT_LE(lines[i]["resident_tokens"], 128 + 64);
    nll_sum += lines[i]["nll"].get<double>() * lines[i]["predicted_tokens"].get<double>();
  }
  const json& summary = lines.back();
  EXPECT_EQ(summary["type"], "summary");
  EXPECT_EQ(summary["tokens"], begin);
  EXPECT_EQ(summary["predicted_tokens"], begin - 1);
  EXPECT_NEAR(summary["nll"].get<double>(), nll_sum / static_cast<double>(begin - 1), 1e-9);
  EXPECT_NEAR(summary["ppl"].get<double>(), std::exp(summary["nll"].get<double>()), 1e-6);
  EXPECT_LE(summary["max_resident_tokens"], 128 + 64);
  EXPECT_GT(summary["evicted_tokens"], 1000);
  EXPECT_EQ(summary["rotation"], "query");
  EXPECT_EQ(summary["positions"], "compact");
  EXPECT_EQ(summary["finish_reason"], "end");
  for (const char* key : {"tokens_per_s", "seconds", "peak_rss_bytes", "evictions", "cache_bytes",
                          "attention_seconds", "block_size", "start_size", "recent_size",
                          "max_cache_size", "chunk", "key_type", "value_type", "model"})
    EXPECT_TRUE(summary.contains(key)) << key;
}

TEST_F(ProgramTest, StreamStopsAtMaxTokens) {
  const std::string text = Put("text.txt", LongText());
  const ProgramResult result =
      Run({"stream", "--text", text, "--max-tokens", "300", "--segment", "100", "--json", "-"});
  ASSERT_EQ(result.status, 0) << result.err;
  const std::vector<json> lines = Lines(result.out);  // and nothing else
  ASSERT_EQ(lines.size(), 4U);
  EXPECT_EQ(lines[3]["tokens"], 300);
  EXPECT_EQ(lines[3]["finish_reason"], "max_tokens");
}

TEST_F(ProgramTest, StreamRefusesWhatItCannotRead) {
  const ProgramResult empty = Run({"stream", "--text", Put("empty", "")});
  EXPECT_EQ(empty.status, 2);
  EXPECT_EQ(empty.err, "carousel: --text: is empty; give some text\n");
  const ProgramResult binary = Run({"stream", "--text", Put("binary", std::string(4096, '\xB5'))});
  EXPECT_EQ(binary.status, 2);
  EXPECT_EQ(binary.err,
            "carousel: --text: is no text in UTF-8: of its first 4096 characters 4096 are none; "
            "convert it to UTF-8 first, or name another file\n");
  const ProgramResult missing = Run({"stream", "--text", Path("none")});
  EXPECT_EQ(missing.status, 1);
  EXPECT_EQ(missing.err,
            "carousel: --text: cannot open " + Path("none") + ": No such file or directory\n");
  EXPECT_EQ(backend_.models_loaded, 0);  // all of it is known before
}

TEST_F(ProgramTest, StreamReadsOnPastWhatIsNoText) {
  const std::string good = LongText().substr(0, 900);
  const std::string bad = Put("bad", good + "caf\xE9 " + std::string(64, '\0') + good + "\xC3");
  const ProgramResult result =
      Run(With({"stream", "--text", bad, "--json", Path("out.jsonl")}, kSmallCache));
  ASSERT_EQ(result.status, 0) << result.err;
  const json summary = Lines(Get("out.jsonl")).back();
  EXPECT_EQ(summary["replaced_sequences"], 3);
  EXPECT_EQ(summary["finish_reason"], "end");
  EXPECT_NE(result.out.find("; 3 sequences of bytes that are no UTF-8 replaced\n"),
            std::string::npos)
      << result.out;
  // The same as of the text that has replacement characters already.
  const std::string u = "\xEF\xBF\xBD";
  const std::string mended = Put("mended", good + "caf" + u + " " + u + good + u);
  const ProgramResult expected =
      Run(With({"stream", "--text", mended, "--json", Path("mended.jsonl")}, kSmallCache));
  EXPECT_EQ(expected.out.find("replaced"), std::string::npos);
  const json same = Lines(Get("mended.jsonl")).back();
  EXPECT_EQ(same["replaced_sequences"], 0);
  EXPECT_EQ(same["tokens"], summary["tokens"]);
  EXPECT_EQ(same["nll"], summary["nll"]);
}

// Standard input is a terminal's other end while this lives; reading it fails once that is closed.
class InputThatFails {
 public:
  explicit InputThatFails(const std::string& text) : saved_(dup(STDIN_FILENO)) {
    int near_end = -1;
    int far_end = -1;
    termios raw{};
    cfmakeraw(&raw);
    EXPECT_EQ(openpty(&near_end, &far_end, nullptr, &raw, nullptr), 0);
    EXPECT_EQ(write(far_end, text.data(), text.size()), std::ssize(text));
    close(far_end);
    dup2(near_end, STDIN_FILENO);
    close(near_end);
  }
  ~InputThatFails() {
    dup2(saved_, STDIN_FILENO);
    close(saved_);
  }
  InputThatFails(const InputThatFails&) = delete;
  InputThatFails& operator=(const InputThatFails&) = delete;

 private:
  int saved_;
};

TEST_F(ProgramTest, AStreamThatAnErrorEndsReportsWhatWasRead) {
  const InputThatFails input(LongText().substr(0, 1000));
  const ProgramResult result = Run(With(
      {"stream", "--text", "-", "--segment", "300", "--json", Path("out.jsonl")}, kSmallCache));
  EXPECT_EQ(result.status, 1);
  EXPECT_EQ(result.err, "carousel: --text: cannot read standard input: Input/output error\n");
  EXPECT_NE(result.out.find("perplexity"), std::string::npos) << result.out;
  const std::vector<json> lines = Lines(Get("out.jsonl"));
  ASSERT_EQ(lines.size(), 4U);
  EXPECT_EQ(lines[3]["finish_reason"], "error");
  EXPECT_GT(lines[3]["tokens"], 800);
  EXPECT_EQ(lines[2]["tokens_end"], lines[3]["tokens"]);
}

TEST_F(ProgramTest, AFailureLeavesTheJsonFileAsItWas) {
  Put("out.jsonl", "old");
  EXPECT_EQ(Run({"stream", "--text", Put("empty", ""), "--json", Path("out.jsonl")}).status, 2);
  EXPECT_EQ(Get("out.jsonl"), "old");
  const ProgramResult bad = Run({"stream", "--text", Put("text", "some"), "--json", "/no/file"});
  EXPECT_EQ(bad.status, 1);
  EXPECT_EQ(bad.err, "carousel: --json: cannot write /no/file: No such file or directory\n");
}

TEST_F(ProgramTest, AFullDeviceEndsTheStreamWithAnError) {
  const ProgramResult result =
      Run({"stream", "--text", Put("text", LongText()), "--segment", "100", "--json", "/dev/full"});
  EXPECT_EQ(result.status, 1);
  EXPECT_EQ(result.err, "carousel: --json: cannot write /dev/full: No space left on device\n");
  EXPECT_NE(result.out.find("perplexity"), std::string::npos) << result.out;  // what was read
}

TEST_F(ProgramTest, GenerateWritesTextAndSummary) {
  const ProgramResult result =
      Run({"generate", "--prompt", "Once upon", "--raw", "--max-new-tokens", "20", "--ignore-eos",
           "--logprobs", "2", "--json", Path("out.json")});
  ASSERT_EQ(result.status, 0) << result.err;
  const json summary = json::parse(Get("out.json"));
  EXPECT_EQ(summary["type"], "summary");
  EXPECT_EQ(summary["prompt_tokens"], 10);  // nine bytes behind the special token
  EXPECT_EQ(summary["new_tokens"], 20);
  EXPECT_EQ(summary["token_ids"].size(), 20U);
  EXPECT_EQ(summary["finish_reason"], "length");
  EXPECT_EQ(summary["logprobs"].size(), 20U);
  EXPECT_EQ(summary["logprobs"][0]["top"].size(), 2U);
  EXPECT_EQ(summary["logprobs"][0]["top"][0]["token"], summary["token_ids"][0]);  // greedy
  std::string text = summary["text"];
  if (!text.ends_with('\n')) text += '\n';
  EXPECT_EQ(result.out, text);
  for (const char* key : {"ttft_ms", "decode_tokens_per_s", "prompt_tokens_per_s",
                          "max_resident_tokens", "evicted_tokens", "cache_bytes"})
    EXPECT_TRUE(summary.contains(key)) << key;
}

TEST_F(ProgramTest, ASummaryHoldsEverySetting) {
  const ProgramResult result =
      Run({"generate", "--prompt", "a", "--raw", "--max-new-tokens", "2", "--temperature", "0.5",
           "--max-cache-size", "512", "--json", "-"});
  ASSERT_EQ(result.status, 0) << result.err;
  const json summary = json::parse(result.out);
  for (const Setting& setting : SettingTable()) {
    if (setting.group == SettingGroup::kScheduling) continue;  // of many requests
    const json& part = setting.group == SettingGroup::kSampling ? summary["sampling"] : summary;
    EXPECT_TRUE(part.contains(std::string(setting.name))) << setting.name;
  }
  EXPECT_EQ(summary["sampling"]["temperature"], 0.5);
  EXPECT_EQ(summary["max_cache_size"], 512);
  EXPECT_EQ(summary["eviction"], true);
  EXPECT_EQ(summary["rotation"], "query");  // in force, not "auto"
  EXPECT_EQ(summary["recall_blocks"], 8);
  EXPECT_EQ(summary["recall_limit_tokens"], 16 * 512);
}

TEST_F(ProgramTest, GenerateIsTheSameFromTextFileAndTokens) {
  const std::vector<std::string> rest = {"--raw", "--max-new-tokens", "12", "--ignore-eos"};
  const std::string text = Run(With({"generate", "--prompt", "hello the"}, rest)).out;
  EXPECT_EQ(Run(With({"generate", "--prompt-file", Put("p", "hello the")}, rest)).out, text);
  const FakeTokenizer tokenizer({" the", "ing", "<end>"}, FakeTokenizer::Partial::kRaw);
  const json ids = tokenizer.Encode("hello the", {.add_special_tokens = true});
  EXPECT_EQ(Run(With({"generate", "--token-ids", Put("ids", ids.dump())}, rest)).out, text);
}

TEST_F(ProgramTest, GuessingAheadChangesNoAnswer) {
  const auto generate = [&](const std::vector<std::string>& more) {
    std::vector<std::string> arguments = {"generate",           "--raw",  "--prompt",
                                          "abcabcabcabcabcabc", "--json", "-",
                                          "--max-new-tokens",   "200"};
    arguments.insert(arguments.end(), more.begin(), more.end());
    const ProgramResult result = Run(arguments);
    EXPECT_EQ(result.status, 0) << result.err;
    return json::parse(result.out);
  };
  const json plain = generate({});
  const json guessed = generate({"--draft-max", "8", "--draft-ngram", "2"});
  EXPECT_EQ(guessed["token_ids"], plain["token_ids"]);
  EXPECT_GT(guessed["accepted_tokens"], 20);
  EXPECT_EQ(guessed["sampling"]["max_draft_tokens"], 8);
  EXPECT_FALSE(plain.contains("drafted_tokens"));
  EXPECT_EQ(Run({"generate", "--raw", "--prompt", "a", "--draft-max", "64"}).status, 2);
}

TEST_F(ProgramTest, GenerateStopsAtAStopString) {
  const std::vector<std::string> arguments = {"generate",     "--prompt",         "x", "--raw",
                                              "--ignore-eos", "--max-new-tokens", "40"};
  const std::string whole = Run(arguments).out;
  std::size_t at = whole.size() / 2;
  while ((static_cast<unsigned char>(whole[at]) & 0xC0U) == 0x80U) --at;
  std::size_t end = at + 1;
  while ((static_cast<unsigned char>(whole[end]) & 0xC0U) == 0x80U) ++end;
  const std::string stop = whole.substr(at, end - at);
  const ProgramResult result = Run(With(arguments, {"--stop", stop, "--json", Path("out.json")}));
  const json summary = json::parse(Get("out.json"));
  EXPECT_EQ(summary["finish_reason"], "stop");
  EXPECT_EQ(summary["stop_string"], stop);
  EXPECT_EQ(summary["text"], whole.substr(0, whole.find(stop)));
  EXPECT_LT(summary["new_tokens"], 40);
}

TEST_F(ProgramTest, GeneratePinsWhatItIsTold) {
  const std::vector<std::string> arguments = {
      "generate", "--prompt-file",    Put("text", LongText().substr(0, 900)),
      "--raw",    "--ignore-eos",     "--max-new-tokens",
      "8",        "--max-cache-size", "256",
      "--policy", "window",           "--logprobs",
      "1",        "--json",           "-"};
  const ProgramResult loose = Run(arguments);
  ASSERT_EQ(loose.status, 0) << loose.err;
  const ProgramResult pinned = Run(With(arguments, {"--pin-tokens", "90"}));
  ASSERT_EQ(pinned.status, 0) << pinned.err;
  EXPECT_NE(json::parse(pinned.out)["logprobs"], json::parse(loose.out)["logprobs"]);
  const ProgramResult too_much = Run(With(arguments, {"--pin-tokens", "200"}));
  EXPECT_EQ(too_much.status, 2);
  EXPECT_EQ(too_much.err.rfind("carousel: --pin-tokens: ", 0), 0U) << too_much.err;
  EXPECT_EQ(Run(With(arguments, {"--pin-system"})).status, 2);  // a raw prompt has none
}

TEST_F(ProgramTest, GenerateSaysWhatItForgotOfThePrompt) {
  const auto run = [this](std::size_t bytes, const std::vector<std::string>& more) {
    return Run(With(With({"generate", "--prompt-file", Put("text", std::string(bytes, 'x')),
                          "--raw", "--ignore-eos", "--max-new-tokens", "40"},
                         kSmallCache),
                    more));
  };
  EXPECT_EQ(run(80, {}).err, "");  // 80 bytes and a special token, in a cache of 128
  EXPECT_EQ(run(900, {"--no-eviction"}).err.find("prompt's"), std::string::npos);
  EXPECT_EQ(run(900, {"--recall-blocks", "0"}).err,
            "carousel: note: 800 of the prompt's 901 tokens were no longer in the cache when the "
            "answer began; a larger --max-cache-size keeps more\n");
  EXPECT_EQ(run(900, {}).err,
            "carousel: note: 800 of the prompt's 901 tokens were no longer in the cache when the "
            "answer began, and wait in the second tier; a larger --max-cache-size keeps more\n");
  EXPECT_NE(run(900, {"--recall-limit-tokens", "320"}).err.find("; 320 of them wait"),
            std::string::npos);
}

TEST_F(ProgramTest, GenerateNeedsATurnFormatOrRaw) {
  const ProgramResult missing = Run({"generate", "--prompt", "hi"});
  EXPECT_EQ(missing.status, 1);
  EXPECT_NE(missing.err.find("turn_format.json: not found"), std::string::npos);
  EXPECT_NE(missing.err.find("--raw"), std::string::npos);
  const ProgramResult nowhere =
      RunExactly({"generate", "--prompt", "hi", "--model", Path("nowhere")});
  EXPECT_EQ(nowhere.status, 1);
  EXPECT_EQ(nowhere.err.rfind("carousel: --model: " + Path("nowhere") + " is not a folder", 0), 0U)
      << nowhere.err;
  Put("turn_format.json",
      R"({"format":"carousel-turn-format","version":1,"reducible":false,"reason":"it counts"})");
  const ProgramResult irreducible = Run({"generate", "--prompt", "hi"});
  EXPECT_EQ(irreducible.status, 1);
  EXPECT_NE(irreducible.err.find("it counts"), std::string::npos);
  EXPECT_NE(irreducible.err.find("--raw"), std::string::npos);
  EXPECT_EQ(backend_.models_loaded, 0);
}

TEST_F(ProgramTest, GenerateRefusesWhatTheTemplateWouldChange) {
  Put("turn_format.json",
      R"({"format":"carousel-turn-format","version":2,"reducible":true,"begin_without_system":"",)"
      R"("roles":{"system":{"before":"S","after":"\n","trim":"none","blank":false,)"
      R"("refused_words":["/think"],"opens_user_turn":false},)"
      R"("user":{"before":"U","after":"\n","trim":"none","blank":true,"refused_words":["<t>"]},)"
      R"("assistant":{"after":"E\n"}},"generation_prompt":"A","end_of_turn":"E"})");
  const auto problem = [this](const std::string& system, const std::string& prompt) {
    const ProgramResult result = Run({"generate", "--system", system, "--prompt", prompt});
    EXPECT_NE(result.status, 0);
    return result.err;
  };
  const std::string empty = problem("", "hi");
  EXPECT_EQ(empty.rfind("carousel: --system: has no words", 0), 0U) << empty;
  EXPECT_NE(empty.find("leave it out"), std::string::npos);
  EXPECT_NE(problem("Do not /think.", "hi").find("--system: has \"/think\" in it"),
            std::string::npos);
  EXPECT_NE(problem("Be brief.", "a<t>").find("message: has \"<t>\" in it"), std::string::npos);
  EXPECT_EQ(backend_.models_loaded, 0);
}

TEST_F(ProgramTest, GenerateRefusesTokensThatAreNone) {
  const auto problem = [this](const std::string& ids) {
    const ProgramResult result = Run({"generate", "--token-ids", Put("ids", ids)});
    EXPECT_EQ(result.status, 2) << ids;
    return result.err;
  };
  EXPECT_NE(problem("{}").find("is not a JSON array"), std::string::npos);
  EXPECT_NE(problem("[1, -2]").find("--token-ids: -2 is not a token id (entry 1"),
            std::string::npos);
  EXPECT_NE(problem("[1.5]").find("1.5 is not a token id"), std::string::npos);
  EXPECT_NE(problem("[]").find("has no tokens"), std::string::npos);
  EXPECT_NE(problem("[1, 100000]").find("--token-ids: token 100000 is outside"), std::string::npos);
}

TEST_F(ProgramTest, InfoSaysWhatTheProbeFound) {
  const ProgramResult result = Run({"info", "--json", Path("info.json")});
  ASSERT_EQ(result.status, 0) << result.err;
  EXPECT_NE(result.out.find("layers 0-1"), std::string::npos) << result.out;
  EXPECT_NE(result.out.find("theta 1000"), std::string::npos) << result.out;
  const json info = json::parse(Get("info.json"));
  EXPECT_EQ(info["type"], "info");
  EXPECT_EQ(info["rope"], "rotates");
  EXPECT_EQ(info["cache_bytes_per_token_f16"], 2 * 2 * 2 * (16 + 16));
  EXPECT_EQ(info["layers"].size(), 2U);
  EXPECT_EQ(info["chat_template_reducible"], false);
}

TEST_F(ProgramTest, ModelsListsFoldersByWhatTheirFilesSay) {
  for (const char* folder : {"second", "first", ".importing", "no_model"}) {
    std::filesystem::create_directory(Path(folder));
    if (std::string(folder) != "no_model")
      Put(std::string(folder) + "/openvino_model.xml", "<net/>");
  }
  Put("first/config.json",
      R"({"model_type": "gemma3", "max_position_embeddings": 32768, "num_hidden_layers": 3,
          "num_attention_heads": 4, "num_key_value_heads": 1, "head_dim": 256, "sliding_window": 512,
          "layer_types": ["sliding_attention", "sliding_attention", "full_attention"],
          "carousel": {"weights": "int8"}})");
  Put("second/config.json", "{ damaged");
  const ProgramResult result =
      RunExactly({"models", "--models-dir", Path(""), "--json", Path("models.jsonl")});
  ASSERT_EQ(result.status, 0) << result.err;
  EXPECT_EQ(std::count(result.out.begin(), result.out.end(), '\n'), 3) << result.out;
  EXPECT_LT(result.out.find("first"), result.out.find("second"));
  EXPECT_NE(result.out.find("3,072, 1,024 past 512 tokens"), std::string::npos) << result.out;
  EXPECT_NE(result.out.find("unknown"), std::string::npos) << result.out;
  const std::string lines = Get("models.jsonl");
  const json first = json::parse(lines.substr(0, lines.find('\n')));
  EXPECT_EQ(first["model"], "first");
  EXPECT_EQ(first["architecture"], "gemma3");
  EXPECT_EQ(first["weights"], "int8");
  EXPECT_EQ(first["trained_window"], 32768);
  EXPECT_EQ(first["cache_bytes_per_token_f16"], 3 * 2 * 256 * 2);
  EXPECT_EQ(first["cache_bytes_per_token_f16_past_window"], 2 * 256 * 2);
  EXPECT_GT(first["bytes"], 6);
}

TEST_F(ProgramTest, AFolderOfModelsThatIsNotThereIsAnError) {
  const ProgramResult result = RunExactly({"models", "--models-dir", Path("nowhere")});
  EXPECT_EQ(result.status, 1);
  EXPECT_EQ(result.err.rfind("carousel: --models-dir: ", 0), 0U) << result.err;
}

TEST_F(ProgramTest, ASettingThatDoesNotFitTheModelIsBadUsage) {
  const ProgramResult result = Run({"stream", "--text", Put("text", "some words"),
                                    "--max-cache-size", "8192"});  // trained on 4096 positions
  EXPECT_EQ(result.status, 2);
  EXPECT_EQ(result.err.rfind("carousel: --max-cache-size: 8192", 0), 0U) << result.err;
  EXPECT_EQ(std::count(result.err.begin(), result.err.end(), '\n'), 1);
}

TEST_F(ProgramTest, TheDefaultsFitASmallWindow) {
  const std::string text = Put("text", LongText().substr(0, 1500));
  for (const std::int64_t window : {64, 128, 256, 512, 1024}) {
    backend_.trained_window = window;
    const ProgramResult stream = Run({"stream", "--text", text, "--json", "-"});
    ASSERT_EQ(stream.status, 0) << stream.err;
    const json summary = Lines(stream.out).back();
    const std::int64_t size = summary["max_cache_size"];
    const std::string note =
        "carousel: note: defaults gave way to what was asked for and to the "
        "window of " +
        std::to_string(window) +
        " tokens that the model was "
        "trained on: --max-cache-size " +
        std::to_string(size) + " and not 672";
    EXPECT_EQ(stream.err.rfind(note, 0), window < 1024 ? 0U : std::string::npos) << stream.err;
    const ProgramResult info = Run({"info", "--json", Path("info.json")});
    EXPECT_EQ(json::parse(Get("info.json"))["default_cache"]["max_cache_size"], size);
    EXPECT_NE(info.out.find("\ncache            " + std::to_string(size) + " tokens"),
              std::string::npos)
        << info.out;
  }
  // What was asked for is refused, with what would do.
  backend_.trained_window = 512;
  const ProgramResult refused = Run({"stream", "--text", text, "--max-cache-size", "672"});
  EXPECT_EQ(refused.status, 2);
  EXPECT_NE(refused.err.find("--max-cache-size: 672 and a chunk of 32"), std::string::npos)
      << refused.err;
  EXPECT_NE(refused.err.find("use at most 448\n"), std::string::npos) << refused.err;
  EXPECT_EQ(Run({"stream", "--text", text, "--max-cache-size", "448"}).status, 0);
}

}  // namespace
}  // namespace carousel
