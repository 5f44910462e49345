// SPDX-License-Identifier: Apache-2.0
// carousel bench over a tiny model and without another engine. tests/cli runs the real program.
#include <gmock/gmock.h>
#include <gtest/gtest.h>

#include <filesystem>
#include <map>
#include <nlohmann/json.hpp>
#include <sstream>

#include "cli/usage_error.h"
#include "cli/whole_file.h"
#include "testing/tiny_backend.h"

namespace carousel {
namespace {

using nlohmann::json;
using ::testing::ElementsAre;
using ::testing::HasSubstr;

std::vector<json> Lines(const std::string& text) {
  std::vector<json> lines;
  std::istringstream stream(text);
  for (std::string line; std::getline(stream, line);) lines.push_back(json::parse(line));
  return lines;
}

std::string Problem(const std::vector<std::string>& arguments) {
  try {
    ParseCommandLine(arguments, [](const std::string&) { return nullptr; });
  } catch (const UsageError& error) {
    return error.what();
  }
  return "";
}

template <typename Flags>
Flags ParseAs(const std::vector<std::string>& arguments) {
  return std::get<Flags>(
      ParseCommandLine(arguments, [](const std::string&) { return nullptr; }).command);
}

TEST(BenchFlags, DefaultsAreASweep) {
  const auto flags = ParseAs<BenchAttentionFlags>({"bench", "attention"});
  EXPECT_TRUE(flags.decode);
  EXPECT_TRUE(flags.prompt);
  EXPECT_THAT(flags.contexts, ElementsAre(512, 2048, 8192, 32768));
  EXPECT_EQ(flags.kv_types.size(), 5U);
  EXPECT_THAT(flags.shifts, ElementsAre(kNoShifts, kShiftInEveryBlock));
  const auto model = ParseAs<BenchModelFlags>({"bench", "model"});
  ASSERT_EQ(model.configs.size(), 2U);
  EXPECT_FALSE(model.configs[0].eviction.has_value());
  EXPECT_EQ(model.configs[1].eviction->max_cache_size, 672);
}

TEST(BenchFlags, ReadsLists) {
  const auto flags = ParseAs<BenchAttentionFlags>(
      {"bench", "attention", "--phase=prompt", "--contexts", "128,64", "--kv-types", "int8",
       "--shifts", "none,2,every_block", "--queries", "32", "--rounds", "3", "--no-openvino"});
  EXPECT_FALSE(flags.decode);
  EXPECT_THAT(flags.contexts, ElementsAre(128, 64));
  EXPECT_THAT(flags.kv_types, ElementsAre(KvType::kInt8));
  EXPECT_THAT(flags.shifts, ElementsAre(kNoShifts, 2, kShiftInEveryBlock));
  EXPECT_EQ(flags.queries, 32);
  EXPECT_TRUE(flags.no_openvino);
  const auto model =
      ParseAs<BenchModelFlags>({"bench", "model", "--max-cache-size", "256,off", "--kv-type-k",
                                "int8", "--start-size", "64", "--contexts", "100"});
  ASSERT_EQ(model.configs.size(), 2U);
  EXPECT_EQ(model.configs[0].eviction->start_size, 64);
  EXPECT_EQ(model.configs[1].cache.key_type, KvType::kInt8);
}

TEST(BenchFlags, ChatSamplesAsTheChatDoes) {
  const auto chat = ParseAs<ChatFlags>({"chat"}).sampling.params;
  const auto ways = ParseAs<BenchModelFlags>({"bench", "model", "--sampling", "chat,penalty"});
  ASSERT_EQ(ways.sampling.size(), 2U);
  const SamplingParams& measured = ways.sampling[0].params;
  EXPECT_EQ(measured.temperature, chat.temperature);
  EXPECT_EQ(measured.top_k, chat.top_k);
  EXPECT_EQ(measured.top_p, chat.top_p);
  EXPECT_EQ(measured.min_p, chat.min_p);
  EXPECT_EQ(measured.presence_penalty, chat.presence_penalty);
  EXPECT_EQ(measured.frequency_penalty, chat.frequency_penalty);
  for (const NamedSampling& way : ways.sampling) {
    EXPECT_EQ(way.params.repetition_penalty, chat.repetition_penalty) << way.name;
    EXPECT_EQ(way.params.penalty_window, chat.penalty_window) << way.name;
  }
  EXPECT_EQ(ways.sampling[1].params.temperature, 0.0);
}

TEST(BenchFlags, SayWhatIsWrong) {
  EXPECT_EQ(Problem({"bench"}),
            "bench: of what? Use bench attention or model or rows or serve or sampler");
  EXPECT_EQ(Problem({"bench", "memory"}),
            "memory: unknown after bench; use attention or model or rows or serve or sampler");
  EXPECT_EQ(Problem({"bench", "--rounds", "3"}),
            "--rounds: unknown after bench; use attention or model or rows or serve or sampler");
  EXPECT_EQ(Problem({"bench", "attention", "--context", "64"}),
            "--context: unknown flag; did you mean --contexts?");
  EXPECT_EQ(Problem({"bench", "attention", "64"}),
            "64: unexpected; see carousel bench attention --help");
  const auto problem = [](std::vector<std::string> flags) {
    flags.insert(flags.begin(), {"bench", "attention"});
    return Problem(flags);
  };
  EXPECT_EQ(problem({"--contexts", "500"}),
            "--contexts: 500 is not a multiple of the block size 32; use 480 or 512");
  EXPECT_EQ(problem({"--contexts", "512,20"}), "--contexts: 20 is too small; the least is 32");
  EXPECT_EQ(problem({"--contexts", "512,,64"}), "--contexts: \"\" is not a whole number");
  EXPECT_EQ(problem({"--contexts", "0"}), "--contexts: 0 is too small; the least is 32");
  EXPECT_EQ(problem({"--phase", "eviction", "--contexts", "100"}),
            "--contexts: 100 is too small; the least is 128");
  EXPECT_EQ(problem({"--phase", "prefill"}),
            "--phase: \"prefill\" is not one of decode, prompt, both, eviction");
  EXPECT_EQ(problem({"--kv-types", "f16,u8"}),
            "--kv-types: \"u8\" is not one of f32, f16, bf16, int8, int4");
  EXPECT_EQ(problem({"--shifts", "all"}),
            "--shifts: \"all\" is neither none nor every_block nor a whole number");
  EXPECT_EQ(problem({"--shifts", "0"}), "--shifts: 0 is too small; the least is 1");
  EXPECT_THAT(problem({"--shifts", "17", "--contexts", "512"}),
              HasSubstr("--shifts: 17 is more than the 16 blocks"));
  EXPECT_THAT(problem({"--queries", "513", "--contexts", "1024,512"}),
              HasSubstr("--queries: 513 is more than the context of 512"));
  EXPECT_EQ(Problem({"bench", "model", "--sampling", "greedy,beam"}),
            "--sampling: \"beam\" is not one of greedy, chat, penalty, temperature, top_p, top_k, "
            "min_p, logprobs");
  EXPECT_EQ(Problem({"bench", "sampler", "--vocabulary", "0"}),
            "--vocabulary: 0 is too small; the least is 1");
  EXPECT_EQ(problem({"--rounds", "0"}), "--rounds: 0 is too small; the least is 1");
  EXPECT_EQ(problem({"--json="}), "--json: is empty; give a name");
  EXPECT_EQ(Problem({"bench", "model", "--max-cache-size", "off,500"}),
            "--max-cache-size: 500 is not a multiple of the block size 32; use 480 or 512");
  EXPECT_EQ(Problem({"bench", "model", "--max-cache-size", "none"}),
            "--max-cache-size: \"none\" is not a whole number");
}

TEST_F(ProgramTest, BenchServeForATimeLeavesNoBlockBehind) {
  const ProgramResult result = Run({"bench",
                                    "serve",
                                    "--seconds",
                                    "2",
                                    "--cancel-share",
                                    "0.3",
                                    "--concurrency",
                                    "4",
                                    "--prompt-tokens",
                                    "40,300",
                                    "--answer-tokens",
                                    "4,20",
                                    "--max-cache-size",
                                    "96",
                                    "--recent-size",
                                    "32",
                                    "--start-size",
                                    "32",
                                    "--chunk",
                                    "32",
                                    "--json",
                                    "-"});
  ASSERT_EQ(result.status, 0) << result.err;
  const std::vector<json> lines = Lines(result.out);
  ASSERT_EQ(lines.size(), 3U);
  const json& last = lines.back();
  EXPECT_EQ(last["open"], 0);
  EXPECT_EQ(last["failed"], 0);
  EXPECT_GT(last["requests"], 20);
  EXPECT_GT(last["cancelled"], 0);
  EXPECT_GT(last["evicted_tokens"], 0);
  EXPECT_GT(last["reused_tokens"], 0);
  EXPECT_LE(last["cache_bytes"], last["checkpoint_bytes"]);
  EXPECT_EQ(Run({"bench", "serve", "--cancel-share", "2"}).status, 2);
}

TEST_F(ProgramTest, BenchAttentionRunsOursAloneAndSaysSo) {
  const ProgramResult result =
      RunExactly({"bench", "attention", "--contexts", "64", "--rounds", "1", "--kv-types",
                  "f16,int4", "--shifts", "none,2", "--json", Path("out.jsonl")});
  ASSERT_EQ(result.status, 0) << result.err;
  EXPECT_EQ(result.err,
            "carousel: note: there is no OpenVINO in this program; ours is measured alone\n");
  EXPECT_THAT(result.out, HasSubstr("decode: 1 query over 64 tokens"));
  EXPECT_THAT(result.out, HasSubstr("prompt: 64 queries over 64 tokens"));
  const std::vector<json> lines = Lines(Get("out.jsonl"));
  ASSERT_EQ(lines.size(), 1U + 2 * 2 * 2);
  EXPECT_EQ(lines[0]["type"], "machine");
  EXPECT_GT(lines[0]["memory_gb_per_s"], 0);
  for (std::size_t i = 1; i < lines.size(); ++i) {
    const json& line = lines[i];
    EXPECT_EQ(line["type"], "attention");
    EXPECT_EQ(line["engine"], "carousel");
    EXPECT_EQ(line["phase"], i <= 4 ? "decode" : "prompt");
    EXPECT_EQ(line["context"], 64);
    EXPECT_GT(line["seconds"], 0);
    EXPECT_LE(line["seconds_least"], line["seconds"]);
    EXPECT_NEAR(line["memory_percent"].get<double>(),
                100 * line["gb_per_s"].get<double>() / line["memory_gb_per_s"].get<double>(), 1e-6);
    // A prompt does not wait for memory; what decode is held against was read in its own rounds.
    EXPECT_EQ(line["memory_gb_per_s"] == lines[0]["memory_gb_per_s"], line["phase"] == "prompt");
  }
  EXPECT_EQ(lines[2]["shifts"], "2");
  EXPECT_EQ(lines[3]["kv_type"], "int4");
  // Decode went through more than the last-level cache holds.
  EXPECT_GT(lines[1]["layers"].get<double>() * lines[1]["bytes_per_layer"].get<double>(),
            3 * lines[0]["cache_bytes"].get<double>());
}

TEST_F(ProgramTest, BenchAttentionTakesAModelsShape) {
  const ProgramResult result =
      RunExactly({"bench", "attention", "--contexts", "64", "--rounds", "1", "--kv-types", "f32",
                  "--shifts", "none", "--phase", "prompt", "--shape-of", Path(""), "--json", "-"});
  ASSERT_EQ(result.status, 0) << result.err;
  const std::vector<json> lines = Lines(result.out);  // and no table
  ASSERT_EQ(lines.size(), 2U);
  EXPECT_EQ(lines[0]["query_heads"], 4);
  EXPECT_EQ(lines[1]["bytes_per_layer"], 64 * 2 * 32 * 4);
  EXPECT_EQ(lines[1]["layers"], 2);
}

TEST_F(ProgramTest, BenchModelTimesEachCache) {
  const ProgramResult result =
      Run({"bench", "model", "--contexts", "100,300", "--decode-tokens", "3", "--rounds", "2",
           "--max-cache-size", "off,128", "--start-size", "32", "--recent-size", "32", "--chunk",
           "64", "--json", Path("out.jsonl")});
  ASSERT_EQ(result.status, 0) << result.err;
  EXPECT_EQ(result.err, "");
  EXPECT_EQ(backend_.models_loaded, 1);
  const std::vector<json> lines = Lines(Get("out.jsonl"));
  ASSERT_EQ(lines.size(), 4U);
  EXPECT_EQ(lines[0]["context"], 100);
  EXPECT_EQ(lines[0]["max_cache_size"], nullptr);
  EXPECT_EQ(lines[2]["context"], 300);
  EXPECT_EQ(lines[3]["max_cache_size"], 128);
  EXPECT_EQ(lines[2]["resident_tokens"], 303);
  EXPECT_LE(lines[3]["resident_tokens"], 128 + 64);
  for (const json& line : lines) {
    EXPECT_EQ(line["type"], "model");
    for (const char* phase : {"prompt", "decode"}) {
      const std::string key = std::string(phase) + "_tokens_per_s";
      EXPECT_GT(line[key], 0);
      EXPECT_LE(line[key + "_least"], line[key]);
      EXPECT_LE(line[key], line[key + "_most"]);
    }
  }
}

TEST_F(ProgramTest, BenchRowsHoldsStepsAgainstOneRow) {
  for (const std::string invariant : {"off", "on"}) {
    const ProgramResult result =
        Run({"bench", "rows", "--rows", "4,2", "--context", "70", "--steps", "3", "--rounds", "2",
             "--batch-invariant", invariant, "--json", Path("out.jsonl")});
    ASSERT_EQ(result.status, 0) << result.err;
    EXPECT_EQ(result.err, "");
    EXPECT_THAT(result.out, HasSubstr("over one row"));
    const std::vector<json> lines = Lines(Get("out.jsonl"));
    ASSERT_EQ(lines.size(), 3U);
    for (std::size_t i = 0; i < 3; ++i) {
      const json& line = lines[i];
      EXPECT_EQ(line["type"], "rows");
      EXPECT_EQ(line["rows"], std::vector<int>({1, 2, 4})[i]);
      EXPECT_EQ(line["batch_invariant"], invariant == "on");
      EXPECT_GT(line["step_ms_least"], 0);
      EXPECT_LE(line["step_ms_least"], line["step_ms"]);
      EXPECT_LE(line["attention_ms"], line["forward_ms"]);
      EXPECT_NEAR(line["tokens_per_s"].get<double>(),
                  1e3 * line["rows"].get<double>() / line["step_ms"].get<double>(), 1e-6);
    }
    EXPECT_EQ(lines[0]["over_one_row"], 1.0);
  }
  EXPECT_EQ(Problem({"bench", "rows", "--rows", "0"}), "--rows: 0 is too small; the least is 1");
}

TEST_F(ProgramTest, BenchModelHoldsSamplingAgainstGreedy) {
  const ProgramResult result = Run({"bench",
                                    "model",
                                    "--contexts",
                                    "40",
                                    "--decode-tokens",
                                    "3",
                                    "--rounds",
                                    "3",
                                    "--max-cache-size",
                                    "off,128",
                                    "--start-size",
                                    "32",
                                    "--recent-size",
                                    "32",
                                    "--chunk",
                                    "64",
                                    "--sampling",
                                    "greedy,chat",
                                    "--json",
                                    Path("out.jsonl")});
  ASSERT_EQ(result.status, 0) << result.err;
  EXPECT_THAT(result.out, HasSubstr(" of greedy ("));
  const std::vector<json> lines = Lines(Get("out.jsonl"));
  ASSERT_EQ(lines.size(), 4U);
  for (std::size_t i = 0; i < lines.size(); ++i) {
    EXPECT_EQ(lines[i]["sampling"], i % 2 == 0 ? "greedy" : "chat");
    EXPECT_EQ(lines[i]["max_cache_size"].is_null(), i < 2);
    EXPECT_EQ(lines[i].contains("decode_over_greedy"), i % 2 == 1);
  }
  EXPECT_LE(lines[1]["decode_over_greedy_least"], lines[1]["decode_over_greedy"]);
}

TEST_F(ProgramTest, BenchSamplerTimesEachWay) {
  const ProgramResult result = RunExactly({"bench", "sampler", "--vocabulary", "7,2000", "--draws",
                                           "2", "--rounds", "2", "--json", Path("out.jsonl")});
  ASSERT_EQ(result.status, 0) << result.err;
  EXPECT_THAT(result.out, HasSubstr("2,000 words\n"));
  const std::vector<json> lines = Lines(Get("out.jsonl"));
  ASSERT_EQ(lines.size(), 2 * SamplingWays().size());
  EXPECT_EQ(lines[0]["type"], "sampler");
  EXPECT_EQ(lines[0]["sampling"], "greedy");
  EXPECT_EQ(lines[0]["vocabulary_size"], 7);
  EXPECT_EQ(lines.back()["vocabulary_size"], 2000);
  for (const json& line : lines) {
    EXPECT_GT(line["seconds_least"], 0);
    EXPECT_LE(line["seconds_least"], line["seconds"]);
  }
}

TEST_F(ProgramTest, BenchModelTakesTokensFromAFile) {
  const std::string ids = Put("ids.json", "[1, 2, 3, 4, 5, 6, 7, 8]");
  const std::vector<std::string> rest = {"--token-ids",      ids,   "--decode-tokens", "2",
                                         "--max-cache-size", "off", "--rounds",        "1"};
  const auto arguments = [&](const std::string& contexts) {
    std::vector<std::string> all = {"bench", "model", "--contexts", contexts};
    all.insert(all.end(), rest.begin(), rest.end());
    return all;
  };
  const ProgramResult result = Run(arguments("8,4"));
  EXPECT_EQ(result.status, 0) << result.err;
  const ProgramResult short_of = Run(arguments("9"));
  EXPECT_EQ(short_of.status, 2);
  EXPECT_EQ(short_of.err, "carousel: --token-ids: " + ids +
                              " has 8 tokens, but --contexts asks for 9; use at most 8\n");
  EXPECT_EQ(backend_.models_loaded, 1);
}

TEST_F(ProgramTest, BenchServeSaysHowOldEvictedBlocksWere) {
  const ProgramResult result =
      Run({"bench",           "serve",   "--requests",      "4",   "--concurrency",    "2",
           "--prompt-tokens", "200,300", "--answer-tokens", "4,4", "--max-cache-size", "96",
           "--recent-size",   "32",      "--start-size",    "32",  "--chunk",          "32",
           "--json",          "-"});
  ASSERT_EQ(result.status, 0) << result.err;
  const json line = Lines(result.out).at(0);
  const json& age = line["evicted_block_age_tokens"];
  ASSERT_EQ(age["counts"].size(), age["bounds"].size() + 1);
  std::int64_t aged = 0;
  for (const json& count : age["counts"]) aged += count.get<std::int64_t>();
  EXPECT_GT(aged, 4 * (200 - 96) / 32);
  EXPECT_GE(age["mean"], 32.0);
  EXPECT_GT(line["evicted_block_idle_tokens"]["mean"], 0.0);
  EXPECT_LE(line["evicted_block_idle_tokens"]["mean"], age["mean"]);
}

TEST_F(ProgramTest, BenchRefusesAFileBeforeItMeasures) {
  for (const std::string part : {"attention", "model", "rows", "serve", "sampler"}) {
    const ProgramResult missing = RunExactly({"bench", part, "--json", "/no/file"});
    EXPECT_EQ(missing.status, 1);
    EXPECT_EQ(missing.out, "");
    EXPECT_EQ(missing.err, "carousel: --json: cannot write /no/file: No such file or directory\n");
  }
  EXPECT_EQ(backend_.models_loaded, 0);
}

TEST_F(ProgramTest, AWholeFileIsOldOrNew) {
  Put("out", "old");
  const WholeFile file(Path("out"), 1);
  EXPECT_EQ(Get("out"), "old");
  EXPECT_FALSE(std::filesystem::exists(Path("out.part")));
  file.Write("new");
  EXPECT_EQ(Get("out"), "new");
  EXPECT_FALSE(std::filesystem::exists(Path("out.part")));
  EXPECT_THROW(WholeFile(Path(""), 1), Error);  // a folder
  EXPECT_THROW(WholeFile("/dev/full", 1).Write("new"), Error);
}

}  // namespace
}  // namespace carousel
