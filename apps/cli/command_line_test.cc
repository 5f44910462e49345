// SPDX-License-Identifier: Apache-2.0
#include "cli/command_line.h"

#include <gtest/gtest.h>

#include <algorithm>
#include <cctype>
#include <map>
#include <sstream>

#include "cli/usage_error.h"
#include "config/setting_table.h"
#include "config/setting_value.h"

namespace carousel {
namespace {

using Variables = std::map<std::string, std::string>;

Invocation Parse(const std::vector<std::string>& arguments, const Variables& variables = {}) {
  return ParseCommandLine(arguments, [&variables](const std::string& name) -> const char* {
    const auto found = variables.find(name);
    return found == variables.end() ? nullptr : found->second.c_str();
  });
}

template <typename Flags>
Flags ParseAs(const std::vector<std::string>& arguments, const Variables& variables = {}) {
  return std::get<Flags>(Parse(arguments, variables).command);
}

// The message; empty when the command line is fine.
std::string Problem(const std::vector<std::string>& arguments, const Variables& variables = {}) {
  try {
    Parse(arguments, variables);
  } catch (const UsageError& error) {
    return error.what();
  }
  return "";
}

TEST(CommandLine, PrintsHelpAndVersion) {
  EXPECT_EQ(ParseAs<PrintText>({"--version"}).text.rfind("carousel ", 0), 0U);
  EXPECT_NE(ParseAs<PrintText>({"--help"}).text.find("Examples:"), std::string::npos);
  for (const char* command : {"info", "stream", "generate", "evaluate", "chat"}) {
    const std::string text = ParseAs<PrintText>({command, "--help"}).text;
    EXPECT_NE(text.find("Examples:\n  carousel " + std::string(command)), std::string::npos);
    EXPECT_NE(text.find("--threads"), std::string::npos);
  }
}

const std::vector<std::vector<std::string>> kCommands = {{"models"},
                                                         {"info"},
                                                         {"stream"},
                                                         {"generate"},
                                                         {"evaluate"},
                                                         {"chat"},
                                                         {"bench", "attention"},
                                                         {"bench", "model"},
                                                         {"bench"},
                                                         {},
                                                         {"bench", "sampler"}};

std::string HelpOf(std::vector<std::string> command, const char* flag) {
  command.emplace_back(flag);
  return ParseAs<PrintText>(command).text;
}

TEST(CommandLine, HelpIsOneScreen) {
  for (const std::vector<std::string>& command : kCommands) {
    const std::string text = HelpOf(command, "--help");
    EXPECT_EQ(text, HelpOf(command, "-h"));
    EXPECT_LE(std::count(text.begin(), text.end(), '\n'), 45) << text;
    std::istringstream lines(text);
    for (std::string line; std::getline(lines, line);) EXPECT_LE(line.size(), 100U) << line;
    EXPECT_NE(text.find("Examples:\n"), std::string::npos) << text;
    // Where something was left out, it says where that is.
    const std::string whole = HelpOf(command, "--help-all");
    EXPECT_NE(whole.find("Examples:\n"), std::string::npos) << whole;
    EXPECT_EQ(text.find("--help-all says everything") != std::string::npos,
              whole.size() > text.size() + 20)
        << text;
  }
}

// A setting's flags, without aliases: as they stand in the help.
std::string FlagOf(const Setting& setting) {
  return std::string(setting.flag.substr(0, setting.flag.find(',')));
}

TEST(CommandLine, HelpAllHasEverySetting) {
  std::string common;
  std::string all;
  for (const Setting& setting : SettingTable()) {
    if (setting.flag.empty()) continue;
    const char* command = setting.group == SettingGroup::kScheduling ? "batch" : "generate";
    common = HelpOf({command}, "--help");
    all = HelpOf({command}, "--help-all");
    const std::string flag =
        "\n  " + std::string(setting.flag) + " " + std::string(setting.value_name);
    EXPECT_NE(all.find(flag), std::string::npos) << flag;
    EXPECT_EQ(common.find(flag) != std::string::npos, setting.common) << flag;
    EXPECT_NE(all.find(setting.help + " (default"), std::string::npos) << setting.help;
  }
  common = HelpOf({"generate"}, "--help");
  all = HelpOf({"generate"}, "--help-all");
  for (const char* words : {"--temperature X", "--max-cache-size N", "--recall-blocks K",
                            "--model DIR", "--threads N", "--precision P", "--json FILE"})
    EXPECT_NE(common.find(words), std::string::npos) << words;
  EXPECT_NE(all.find("(default 8; fewer where"), std::string::npos);
  EXPECT_NE(all.find("(default 672, less where"), std::string::npos);
  EXPECT_NE(all.find("\n                              tova: "), std::string::npos);
  EXPECT_NE(HelpOf({"chat"}, "--help").find("(default 0.6)"), std::string::npos);
}

TEST(CommandLine, EverySettingIsAFlagAndAVariable) {
  for (const Setting& setting : SettingTable()) {
    if (setting.flag.empty()) continue;
    std::vector<std::string> words = {"generate", "--prompt", "a"};
    if (setting.group == SettingGroup::kScheduling)
      words = {"batch", "--requests", "a", "--out", "b"};
    std::string variable = "CAROUSEL" + FlagOf(setting).substr(1);
    std::replace(variable.begin(), variable.end(), '-', '_');
    std::transform(variable.begin(), variable.end(), variable.begin(),
                   [](unsigned char letter) { return static_cast<char>(std::toupper(letter)); });
    const std::string value = TextOf(setting, DefaultOf(setting)).value_or("4096");
    EXPECT_EQ(Problem(words, {{variable, value}}), "");
    std::vector<std::string> with_flag = words;
    with_flag.insert(with_flag.end(), {FlagOf(setting), value});
    EXPECT_EQ(Problem(with_flag), "");
    // Any text names a file, or a folder.
    if (setting.name == "recall_store" || setting.name == "swap_directory") continue;
    with_flag.back() = "?";
    EXPECT_EQ(Problem(with_flag).rfind(FlagOf(setting) + ": \"?\" is not ", 0), 0U)
        << Problem(with_flag);
    EXPECT_EQ(Problem(words, {{variable, "?"}})
                  .rfind(FlagOf(setting) + " (" + variable + "): \"?\" is not ", 0),
              0U);
  }
}

TEST(CommandLine, DefaultsAreTheReferences) {
  const auto flags = ParseAs<StreamFlags>({"stream", "--text", "book.txt"});
  EXPECT_EQ(flags.text, "book.txt");
  EXPECT_EQ(flags.model.directory, "models/smollm2-135m-instruct");
  EXPECT_EQ(flags.segment, 1024);
  ASSERT_TRUE(flags.config.eviction.has_value());
  EXPECT_EQ(flags.config.eviction->start_size, 32);
  EXPECT_EQ(flags.config.eviction->recent_size, 128);
  EXPECT_EQ(flags.config.eviction->max_cache_size, 672);
}

TEST(CommandLine, ReadsEveryKindOfFlag) {
  const auto flags = ParseAs<GenerateFlags>({"generate",
                                             "--prompt",
                                             "-- hello --",
                                             "--raw",
                                             "--start-size=64",
                                             "--recent-size",
                                             "64",
                                             "--rotation",
                                             "keys",
                                             "--positions=compact",
                                             "--aggregation",
                                             "sum",
                                             "--kv-type-k",
                                             "f32",
                                             "--cache-limit",
                                             "64M",
                                             "--precision",
                                             "bf16",
                                             "--seed",
                                             "18446744073709551615",
                                             "--temperature",
                                             "0.5",
                                             "--top-k",
                                             "40",
                                             "--repeat-penalty",
                                             "1.2",
                                             "--stop",
                                             "a",
                                             "--stop",
                                             "[b]",
                                             "--chunk",
                                             "128",
                                             "--prompt-eviction",
                                             "at_end",
                                             "--logprobs",
                                             "3",
                                             "--presence-penalty",
                                             "-1",
                                             "--json",
                                             "-",
                                             "--ignore-eos"});
  EXPECT_EQ(flags.prompt, "-- hello --");
  EXPECT_TRUE(flags.raw);
  EXPECT_TRUE(flags.ignore_eos);
  EXPECT_EQ(flags.config.eviction->start_size, 64);
  EXPECT_EQ(flags.config.eviction->rotation, Rotation::kKeys);
  EXPECT_EQ(flags.config.eviction->positions, PositionPolicy::kCompact);
  EXPECT_EQ(flags.config.eviction->aggregation, Aggregation::kSum);
  EXPECT_EQ(flags.config.eviction->prompt_eviction, PromptEviction::kAtEnd);
  EXPECT_EQ(flags.config.cache.key_type, KvType::kF32);
  EXPECT_EQ(flags.config.cache.limit_bytes, 64 << 20);
  EXPECT_EQ(flags.config.chunk_size, 128);
  EXPECT_EQ(flags.model.precision, Precision::kBf16);
  EXPECT_EQ(flags.sampling.params.seed, UINT64_MAX);
  EXPECT_EQ(flags.sampling.params.temperature, 0.5);
  EXPECT_EQ(flags.sampling.params.top_k, 40);
  EXPECT_EQ(flags.sampling.params.repetition_penalty, 1.2);
  EXPECT_EQ(flags.sampling.params.presence_penalty, -1);
  EXPECT_EQ(flags.sampling.params.logprobs, 3);
  EXPECT_EQ(flags.sampling.stops, (std::vector<std::string>{"a", "[b]"}));
  EXPECT_EQ(flags.json, "-");
}

TEST(CommandLine, ReadsWhatIsRecalled) {
  const auto given = ParseAs<StreamFlags>(
      {"stream", "--text", "a", "--recall-blocks", "8", "--recall-store", "/tmp/tier",
       "--recall-limit", "64M", "--recall-every=2", "--recall-chunk=7", "--recall-gain=0.5",
       "--recall-promotion=3", "--recall-queries=5", "--recall-kv-type", "int4"});
  EXPECT_EQ(given.config.recall.blocks, 8);
  EXPECT_EQ(given.config.recall.store_file, "/tmp/tier");
  EXPECT_FALSE(given.config.recall.yields);
  EXPECT_EQ(given.config.recall.limit_bytes, 64 << 20);
  EXPECT_EQ(given.config.recall.limit_tokens, 0);
  EXPECT_EQ(given.config.recall.every, 2);
  EXPECT_EQ(given.config.recall.queries, 5);
  EXPECT_EQ(given.config.recall.chunk, 7);
  EXPECT_EQ(given.config.recall.least_gain, 0.5);
  EXPECT_EQ(given.config.recall.promotion, 3.0);
  EXPECT_EQ(given.config.recall.kv_type, KvType::kInt4);
  const auto memory = ParseAs<StreamFlags>({"stream", "--text", "a", "--recall-blocks=8",
                                            "--recall-store=ram", "--recall-kv-type=auto"});
  EXPECT_EQ(memory.config.recall.store_file, "");
  EXPECT_EQ(memory.config.recall.kv_type, std::nullopt);
  EXPECT_EQ(ParseAs<StreamFlags>({"stream", "--text", "a", "--recall-blocks=8", "--no-eviction"})
                .config.recall.blocks,
            0);
}

TEST(CommandLine, RecallsWhereNothingIsSaid) {
  const auto said = [](std::vector<std::string> more) {
    std::vector<std::string> words = {"stream", "--text", "a", "--max-cache-size", "512"};
    words.insert(words.end(), more.begin(), more.end());
    return ParseAs<StreamFlags>(words).config.recall;
  };
  const RecallConfig nothing = said({});
  EXPECT_EQ(nothing.blocks, kRecalledBlocks);
  EXPECT_TRUE(nothing.yields);
  EXPECT_EQ(nothing.limit_tokens, 512 * kStoredCaches);
  EXPECT_EQ(said({"--recall-blocks=0"}).blocks, 0);
  EXPECT_EQ(said({"--recall-limit-tokens=4096"}).limit_tokens, 4096);
  EXPECT_EQ(said({"--recall-limit-tokens=0"}).limit_tokens, 0);
  const RecallConfig bytes = said({"--recall-limit=64M"});
  EXPECT_EQ(bytes.limit_tokens, 0);
  EXPECT_EQ(bytes.limit_bytes, 64 << 20);
}

TEST(CommandLine, KnowsWhatModelsComputeIn) {
  EXPECT_EQ(ParseAs<InfoFlags>({"info"}).model.precision, Precision::kF32);
  EXPECT_EQ(ParseAs<InfoFlags>({"info", "--precision", "f32"}).model.precision, Precision::kF32);
  EXPECT_EQ(ParseAs<InfoFlags>({"info", "--precision", "int8"}).model.precision, Precision::kInt8);
  EXPECT_NE(Problem({"info", "--precision", "int4"}).find("f32, bf16, int8"), std::string::npos);
}

TEST(CommandLine, TheLastOfTwoCounts) {
  const auto flags = ParseAs<StreamFlags>(
      {"stream", "--text", "a", "--threads", "1", "--threads=2", "--text", "b"});
  EXPECT_EQ(flags.text, "b");
  EXPECT_EQ(flags.model.threads, 2);
}

TEST(CommandLine, VariablesCountWhereFlagsAreNotGiven) {
  const Variables variables = {{"CAROUSEL_TEXT", "variable.txt"},
                               {"CAROUSEL_MAX_CACHE_SIZE", "512"},
                               {"CAROUSEL_NO_EVICTION", "false"},
                               {"CAROUSEL_CHUNK", ""}};
  const auto flags = ParseAs<StreamFlags>({"stream", "--text", "flag.txt"}, variables);
  EXPECT_EQ(flags.text, "flag.txt");
  EXPECT_EQ(flags.config.eviction->max_cache_size, 512);
  EXPECT_EQ(flags.config.chunk_size, 256);
  EXPECT_EQ(ParseAs<StreamFlags>({"stream"}, variables).text, "variable.txt");
  EXPECT_FALSE(
      ParseAs<StreamFlags>({"stream"}, {{"CAROUSEL_TEXT", "a"}, {"CAROUSEL_NO_EVICTION", "1"}})
          .config.eviction.has_value());
  const auto from_file = ParseAs<GenerateFlags>({"generate", "--prompt-file", "a.txt"},
                                                {{"CAROUSEL_PROMPT", "variable"}});
  EXPECT_EQ(from_file.prompt, std::nullopt);
}

TEST(CommandLine, ABadVariableIsNamed) {
  EXPECT_EQ(Problem({"stream", "--text", "a"}, {{"CAROUSEL_THREADS", "x"}}),
            "--threads (CAROUSEL_THREADS): \"x\" is not a whole number");
  EXPECT_EQ(
      Problem({"stream", "--text", "a"}, {{"CAROUSEL_MAX_CACHE_SIZE", "500"}}),
      "--max-cache-size (CAROUSEL_MAX_CACHE_SIZE): 500 is not a multiple of the block size 32; "
      "use 480 or 512");
}

TEST(CommandLine, SizesSayTheirLimits) {
  const auto problem = [](std::vector<std::string> flags) {
    flags.insert(flags.begin(), {"stream", "--text", "a"});
    return Problem(flags);
  };
  EXPECT_EQ(problem({"--max-cache-size", "500"}),
            "--max-cache-size: 500 is not a multiple of the block size 32; use 480 or 512");
  for (const char* flag :
       {"--start-size", "--recent-size", "--max-cache-size", "--block-size", "--chunk"}) {
    for (const char* value : {"0", "-32", "31", "99999999999999999", "x", "1.5", ""}) {
      const std::string text = problem({flag, value});
      EXPECT_EQ(text.rfind(std::string(flag) + ": ", 0), 0U)
          << flag << " " << value << ": " << text;
    }
  }
  const std::vector<std::string> full = {"--max-cache-size", "160", "--recent-size", "128",
                                         "--start-size",     "32"};
  EXPECT_EQ(problem(full).rfind("--max-cache-size: 160 leaves nothing", 0), 0U) << problem(full);
  // Settings inside a sentence are called by their flags too.
  EXPECT_NE(problem(full).find("--start-size 32"), std::string::npos);
}

TEST(CommandLine, DefaultsAreWholeBlocksOfAnySize) {
  for (const char* size : {"8", "24", "48", "64", "200", "256"}) {
    const auto flags = ParseAs<StreamFlags>({"stream", "--text", "a", "--block-size", size});
    EXPECT_EQ(flags.config.eviction->start_size % flags.config.cache.block_size, 0) << size;
    EXPECT_FALSE(flags.config.yields.block_size);
    EXPECT_TRUE(flags.config.yields.max_cache_size);
  }
}

TEST(CommandLine, SaysWhatIsWrong) {
  EXPECT_EQ(Problem({}),
            "no command; use models, info, stream, generate, evaluate, batch, chat or bench, or "
            "see carousel "
            "--help");
  EXPECT_EQ(
      Problem({"strem"}),
      "strem: unknown command; use models, info, stream, generate, evaluate, batch, chat or bench");
  EXPECT_EQ(Problem({"--verbose"}), "--verbose: unknown flag; see carousel --help");
  EXPECT_EQ(Problem({"stream"}),
            "--text: missing; give --text FILE, or --text - for standard input");
  EXPECT_EQ(Problem({"stream", "--text"}), "--text: a value is missing");
  EXPECT_EQ(Problem({"stream", "--text="}), "--text: is empty; give a name");
  EXPECT_EQ(Problem({"stream", "--text", "a", "--max-cache-sise=512"}),
            "--max-cache-sise: unknown flag; did you mean --max-cache-size?");
  EXPECT_EQ(Problem({"stream", "--text", "a", "--colour"}),
            "--colour: unknown flag; see carousel stream --help");
  EXPECT_EQ(Problem({"stream", "a.txt"}), "a.txt: unexpected; see carousel stream --help");
  EXPECT_EQ(Problem({"stream", "--text", "a", "--rotation", "left"}),
            "--rotation: \"left\" is not one of auto, query, keys, off");
  EXPECT_EQ(Problem({"stream", "--text", "a", "--cache-limit", "12Q"}),
            "--cache-limit: \"12Q\" is not a size; write bytes, 64M or 1G");
  EXPECT_EQ(Problem({"stream", "--text", "a", "--threads", "-1"}),
            "--threads: -1 is too small; the least is 0");
  EXPECT_EQ(Problem({"generate"}),
            "--prompt: missing; give --prompt TEXT, --prompt-file FILE or --token-ids FILE");
  EXPECT_EQ(Problem({"generate", "--prompt", "a", "--prompt-file", "b"}),
            "--prompt and --prompt-file: give one of them");
  EXPECT_EQ(Problem({"generate", "--prompt", "a", "--raw", "--system", "b"}),
            "--system: has no place in a raw prompt; leave out one of them");
  EXPECT_EQ(Problem({"generate", "--prompt", "caf\xE9"}),
            "--prompt: is not valid UTF-8 (0xe9) at byte 3; convert it to UTF-8 first");
  EXPECT_EQ(Problem({"generate", "--prompt", "a", "--temperature", "nan"}),
            "--temperature: \"nan\" is not a number");
  EXPECT_EQ(Problem({"generate", "--prompt", "a", "--stop", ""}),
            "--stop: an empty text stops everything; give some");
  EXPECT_EQ(Problem({"generate", "--prompt", "a", "--raw=maybe"}),
            "--raw: \"maybe\" is neither true nor false");
}

TEST(CommandLine, SamplingOutOfRangeNamesTheFlag) {
  for (const auto& [flag, value] :
       std::vector<std::pair<std::string, std::string>>{{"--temperature", "-1"},
                                                        {"--top-k", "-1"},
                                                        {"--top-p", "0"},
                                                        {"--min-p", "1.5"},
                                                        {"--repetition-penalty", "0"},
                                                        {"--presence-penalty", "3"},
                                                        {"--frequency-penalty", "-3"},
                                                        {"--penalty-window", "0"},
                                                        {"--logprobs", "21"},
                                                        {"--max-new-tokens", "0"}}) {
    const std::string text = Problem({"generate", "--prompt", "a", flag, value});
    EXPECT_EQ(text.rfind(flag + ": ", 0), 0U) << text;
  }
}

TEST(CommandLine, NotesWhatHasNoEffect) {
  const Invocation invocation =
      Parse({"stream", "--text", "a", "--no-eviction", "--start-size", "5"});
  EXPECT_EQ(invocation.notes,
            std::vector<std::string>{"--start-size: has no effect with --no-eviction"});
}

}  // namespace
}  // namespace carousel
