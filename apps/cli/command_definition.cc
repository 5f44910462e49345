// SPDX-License-Identifier: Apache-2.0
#include "cli/command_definition.h"

#include <fmt/format.h>

#include <CLI/CLI.hpp>
#include <algorithm>
#include <array>
#include <utility>

#include "base/check.h"
#include "cli/bench_definition.h"
#include "cli/error_text.h"
#include "cli/usage_error.h"
#include "text/stop_strings.h"
#include "text/text_pieces.h"

namespace carousel {
namespace {

constexpr const char* kModelsFooter = R"(
Examples:
  carousel models
  carousel models --models-dir /srv/models --json -)";

constexpr const char* kInfoFooter = R"(
Examples:
  carousel info
  carousel info --model models/smollm2-135m-instruct --json info.json)";

constexpr const char* kStreamFooter = R"(
Feeds the text as one sequence and reports how well the model predicts each next token: negative
log-likelihood in nats per token, and perplexity. A segment covers the tokens [begin, end) of the text.

The text is UTF-8. Bytes that are not valid UTF-8, as logs have them, do not end it: each bad sequence, and
each run of NULs, is read as one replacement character (U+FFFD), and the summary counts them. A file is
refused when more than one character in ten of its first 64 KB is no text: a program, a compressed file,
another encoding.
When an error ends a text half-way, what was read is reported all the same, with finish_reason "error".

Examples:
  carousel stream --text book.txt
  carousel stream --text book.txt --start-size 32 --recent-size 256 --max-cache-size 512 \
    --json out.jsonl
  # for comparison: predictions get bad past the trained window
  carousel stream --text book.txt --positions keep
  tail -f server.log | carousel stream --text -)";

constexpr const char* kGenerateFooter = R"(
Examples:
  carousel generate --prompt "Name three rivers."
  carousel generate --prompt-file notes.txt --raw --max-new-tokens 500 --temperature 0.7 --seed 1
  echo "Once upon a time" | carousel generate --prompt-file - --raw --stop "." --json -)";

constexpr const char* kEvaluateFooter = R"(
Each line of FILE is one conversation, run from an empty cache:
  {"id": "a1", "raw": false, "turns": [{"prompt": "..."}, {"prompt": "...", "score": "..."}]}
A turn has "prompt", and may have "max_new_tokens"; "score", an answer that is given instead of the
model's own and whose negative log-likelihood is reported; "score_prompt": true, the same of the
prompt's tokens; "pin": true, which keeps the prompt from ever being evicted. Prompts and scored
answers are texts or arrays of token ids; ids are taken as they are. "raw": true leaves the chat template
out. One line of JSON comes out per turn, then a summary.

--logits writes, for each token of each scored answer, the natural logarithm of the model's
distribution that the token was one of: float32, little-endian, [tokens, vocabulary], row after row.
A turn's "logits_row" says where its rows begin; the summary has "vocabulary_size".

Examples:
  carousel evaluate --tasks tasks.jsonl --max-cache-size 512 --json results.jsonl
  carousel evaluate --tasks tasks.jsonl --no-eviction --logits whole.f32 --json whole.jsonl
  echo '{"id": 1, "raw": true, "turns": [{"prompt": "One, two,"}]}' | carousel evaluate --tasks -)";

constexpr const char* kBatchFooter = R"(
Each line of FILE is one request, each with a custom_id of its own. OpenAI's batch lines are read:
  {"custom_id": "a", "method": "POST", "url": "/v1/chat/completions", "body": {"messages": [...], ...}}
(also /v1/completions, with a "prompt"), and plain ones:
  {"custom_id": "b", "prompt": "..." or "messages": [...], "max_tokens": 64, "temperature": 0, "ignore_eos": false}
A plain prompt is a user's message, or with --raw the text that the model reads; an array of token ids is read as
it is. A line may also have top_p, top_k, min_p, seed, stop, repetition_penalty, presence_penalty,
frequency_penalty; what it does not say is as the flags are.

One line comes out for each, in the order in which they end: OpenAI's answer, or
  {"custom_id", "text", "finish_reason", "usage": {...}, "kv": {...}}
A request that cannot be answered gets a line with an "error"; the others go on. Started again with the same files,
a batch that was stopped leaves out what is answered already.

Examples:
  carousel batch --requests requests.jsonl --out answers.jsonl
  carousel batch --requests requests.jsonl --out answers.jsonl --concurrency 16 --max-cache-size 512
  echo '{"custom_id": 1, "prompt": "One, two,"}' | carousel batch --requests - --out - --raw)";

constexpr const char* kChatFooter = R"(
At the prompt: /help lists the commands, a backslash at the end of a line continues it on the next, what is
pasted is one message with its lines, Ctrl-C stops an answer, Ctrl-D ends the chat. Where the input is no
terminal, as from a file or a pipe, each line is a message. The sampling defaults suit a small model;
--temperature 0 makes answers repeatable whatever the seed.

Examples:
  carousel chat
  carousel chat --system "You answer in one sentence." --max-cache-size 1024
  printf 'Hello\nWho are you?\n' | carousel chat --temperature 0)";

// Turns what Validate refuses into bad usage, its field called by the flag.
template <typename Check>
void Checked(const FieldLabels& labels, Check check) {
  try {
    check();
  } catch (const Error& error) {
    throw UsageError(ErrorText(error, labels));
  }
}

void CheckPaths(const FlagSet& flags, const ModelFlags& model, const std::string* json) {
  RefuseEmpty(flags, "--model", model.directory);
  if (json != nullptr) RefuseEmpty(flags, "--json", *json);
}

void SettleCache(const FlagSet& flags, const ConfigDraft& cache, EngineConfig* config,
                 Invocation* invocation) {
  invocation->labels = ModelLabels(flags);
  *config = CheckedConfig(cache, invocation->labels);
  for (const std::string& flag : FlagsWithoutEffect(flags, cache))
    invocation->notes.push_back(fmt::format("{}: has no effect with --no-eviction", flag));
}

void CheckSampling(const SamplingFlags& sampling, const FieldLabels& labels) {
  Checked(labels, [&] {
    Validate(sampling.params);
    StopStringMatcher matcher(sampling.stops);
  });
}

// Of --prompt, --prompt-file and --token-ids one is meant: the one on the command line, else the
// variable. Returns its name and drops the others.
std::string ChoosePromptSource(const FlagSet& flags, GenerateFlags* target) {
  const std::array<std::pair<const char*, std::optional<std::string>*>, 3> sources{
      {{"--prompt", &target->prompt},
       {"--prompt-file", &target->prompt_file},
       {"--token-ids", &target->token_ids_file}}};
  const bool on_command_line = std::any_of(sources.begin(), sources.end(), [&](const auto& source) {
    return flags.GivenOnCommandLine(source.first);
  });
  std::vector<std::string> given;
  for (const auto& [flag, value] : sources) {
    if (on_command_line && !flags.GivenOnCommandLine(flag)) value->reset();
    if (value->has_value()) given.emplace_back(flag);
  }
  if (given.empty())
    throw UsageError(
        "--prompt: missing; give --prompt TEXT, --prompt-file FILE or --token-ids FILE");
  if (given.size() > 1)
    throw UsageError(
        fmt::format("{} and {}: give one of them", flags.Label(given[0]), flags.Label(given[1])));
  return given.front();
}

class ModelsCommand : public CommandDefinition {
 public:
  explicit ModelsCommand(CLI::App* app) : CommandDefinition(app) {
    flags().Text({"--models-dir", "DIR", "The folder that holds the models (default: models)"},
                 &target_.directory);
    AddJsonFlag(&flags(), "Write one JSON object per model there; -: standard output",
                &target_.json);
  }

  Invocation Settle(const Environment& environment) override {
    flags().Apply(environment);
    RefuseEmpty(flags(), "--models-dir", target_.directory);
    RefuseEmpty(flags(), "--json", target_.json);
    return {
        .command = target_, .labels = {{"models_dir", flags().Label("--models-dir")}}, .notes = {}};
  }

 private:
  ModelsFlags target_;
};

class InfoCommand : public CommandDefinition {
 public:
  explicit InfoCommand(CLI::App* app) : CommandDefinition(app) {
    AddModelFlags(&flags(), &target_.model);
    flags().Heading("Output");
    AddJsonFlag(&flags(), "Write one JSON object there; -: standard output", &target_.json);
  }

  Invocation Settle(const Environment& environment) override {
    flags().Apply(environment);
    CheckPaths(flags(), target_.model, &target_.json);
    return {.command = target_, .labels = ModelLabels(flags()), .notes = {}};
  }

 private:
  InfoFlags target_;
};

class StreamCommand : public CommandDefinition {
 public:
  explicit StreamCommand(CLI::App* app) : CommandDefinition(app) {
    flags().Heading("Text");
    flags().Text({"--text", "FILE", "The text to read; -: standard input, which may never end"},
                 &target_.text);
    flags().Integer({"--max-tokens", "N", "Stop after so many tokens (default: at the text's end)"},
                    {2, INT64_MAX}, &target_.max_tokens);
    AddModelFlags(&flags(), &target_.model);
    AddCacheFlags(&flags(), {.prompt_eviction = false}, &cache_);
    flags().Heading("Output");
    flags().Integer({"--segment", "N", "Report every N tokens (default 1024)"}, {1, INT64_MAX},
                    &target_.segment);
    AddJsonFlag(&flags(),
                "Write one JSON object per line there; -: standard output, without the table",
                &target_.json);
  }

  Invocation Settle(const Environment& environment) override {
    flags().Apply(environment);
    Invocation invocation;
    SettleCache(flags(), cache_, &target_.config, &invocation);
    CheckPaths(flags(), target_.model, &target_.json);
    if (!flags().Given("--text"))
      throw UsageError("--text: missing; give --text FILE, or --text - for standard input");
    RefuseEmpty(flags(), "--text", target_.text);
    invocation.labels["prompt"] = flags().Label("--text");
    invocation.command = target_;
    return invocation;
  }

 private:
  StreamFlags target_;
  ConfigDraft cache_;
};

class GenerateCommand : public CommandDefinition {
 public:
  explicit GenerateCommand(CLI::App* app) : CommandDefinition(app) {
    flags().Heading("Prompt");
    flags().OptionalText({"--prompt", "TEXT", "The prompt"}, &target_.prompt);
    flags().OptionalText({"--prompt-file", "FILE", "The prompt is in this file; -: standard input"},
                         &target_.prompt_file);
    flags().OptionalText({.flag = "--token-ids",
                          .value_name = "FILE",
                          .description = "The prompt as a JSON array of token ids; implies --raw",
                          .rare = true},
                         &target_.token_ids_file);
    flags().OptionalText({"--system", "TEXT", "The system message in front of the prompt"},
                         &target_.system);
    AddPinSystemFlag(&flags(), &target_.pin_system);
    flags().Integer(
        {.flag = "--pin-tokens",
         .value_name = "N",
         .description = "Never evict the first N tokens of the prompt; 0: none (default 0)",
         .rare = true},
        {0, INT64_MAX}, &target_.pin_tokens);
    flags().Switch(
        {"--raw", "", "Give the prompt to the model as it is, without the chat template"},
        &target_.raw);
    AddModelFlags(&flags(), &target_.model);
    target_.sampling.max_new_tokens = 256;
    AddSamplingFlags(&flags(), &target_.sampling);
    flags().Switch(
        {.flag = "--ignore-eos", .description = "Go on past the end token", .rare = true},
        &target_.ignore_eos);
    AddLogprobsFlag(&flags(), &target_.sampling);
    AddBeamFlags(&flags(), &target_.beams);
    AddCacheFlags(&flags(), {.prompt_eviction = true}, &cache_);
    AddBatchInvariantFlag(&flags(), &cache_);
    flags().Heading("Output");
    AddJsonFlag(&flags(), "Write a JSON summary there; -: standard output, without the text",
                &target_.json);
  }

  Invocation Settle(const Environment& environment) override {
    flags().Apply(environment);
    Invocation invocation;
    SettleCache(flags(), cache_, &target_.config, &invocation);
    CheckSampling(target_.sampling, invocation.labels);
    Checked(invocation.labels, [&] {
      Validate(target_.beams);
      if (target_.searches()) ValidateForBeams(target_.sampling.params);
    });
    for (const std::string& flag : FlagsWithoutEffect(flags(), target_))
      invocation.notes.push_back(fmt::format("{}: has no effect without --num-beams", flag));
    CheckPaths(flags(), target_.model, &target_.json);
    const std::string source = ChoosePromptSource(flags(), &target_);
    for (const char* field : {"prompt", "text"}) invocation.labels[field] = flags().Label(source);
    if (target_.token_ids_file) target_.raw = true;
    if (target_.raw && flags().GivenOnCommandLine("--system"))
      throw UsageError("--system: has no place in a raw prompt; leave out one of them");
    if (target_.raw && target_.pin_system)
      throw UsageError("--pin-system: a raw prompt has no system message; use --pin-tokens");
    if (target_.raw) target_.system.reset();
    if (target_.pin_tokens > 0) invocation.labels["pinned"] = "--pin-tokens";
    if (target_.prompt)
      Checked(invocation.labels, [&] { ValidateText(*target_.prompt, "prompt", 0); });
    if (target_.system)
      Checked(invocation.labels, [&] { ValidateText(*target_.system, "system", 0); });
    invocation.command = target_;
    return invocation;
  }

 private:
  GenerateFlags target_;
  ConfigDraft cache_;
};

class EvaluateCommand : public CommandDefinition {
 public:
  explicit EvaluateCommand(CLI::App* app) : CommandDefinition(app) {
    flags().Heading("Conversations");
    flags().Text(
        {"--tasks", "FILE", "The conversations, one JSON object a line; -: standard input", "text"},
        &target_.tasks);
    AddModelFlags(&flags(), &target_.model);
    target_.sampling.max_new_tokens = 32;
    AddSamplingFlags(&flags(), &target_.sampling);
    AddCacheFlags(&flags(), {.prompt_eviction = true}, &cache_);
    flags().Heading("Output");
    AddJsonFlag(&flags(), "Write the results there; -: standard output (default -)", &target_.json);
    flags().Text({"--logits", "FILE", "Write the distributions behind scored answers there"},
                 &target_.logits);
  }

  Invocation Settle(const Environment& environment) override {
    flags().Apply(environment);
    Invocation invocation;
    SettleCache(flags(), cache_, &target_.config, &invocation);
    CheckSampling(target_.sampling, invocation.labels);
    CheckPaths(flags(), target_.model, &target_.json);
    if (!flags().Given("--tasks"))
      throw UsageError("--tasks: missing; give --tasks FILE, or --tasks - for standard input");
    RefuseEmpty(flags(), "--tasks", target_.tasks);
    RefuseEmpty(flags(), "--logits", target_.logits);
    for (const char* field : {"prompt", "forced_answer", "tasks"})
      invocation.labels[field] = flags().Label("--tasks");
    invocation.command = target_;
    return invocation;
  }

 private:
  EvaluateFlags target_;
  ConfigDraft cache_;
};

constexpr std::int64_t kBatchConcurrency = 8;
constexpr std::int64_t kBatchCheckpointBytes = std::int64_t{256} << 20;

class BatchCommand : public CommandDefinition {
 public:
  explicit BatchCommand(CLI::App* app) : CommandDefinition(app) {
    flags().Heading("Requests");
    flags().Text(
        {"--requests", "FILE", "The requests, one JSON object a line; -: standard input", "text"},
        &target_.requests);
    flags().Text({"--out", "FILE", "Add a line for each answer there; -: standard output"},
                 &target_.out);
    flags().Switch({"--raw", "", "Give plain prompts to the model without the chat template"},
                   &target_.raw);
    cache_.config.scheduler.max_running = kBatchConcurrency;
    cache_.config.checkpoint_bytes = kBatchCheckpointBytes;
    AddSchedulingFlags(&flags(), &cache_);
    AddModelFlags(&flags(), &target_.model);
    target_.sampling.max_new_tokens = 256;
    AddSamplingFlags(&flags(), &target_.sampling);
    AddCacheFlags(&flags(), {.prompt_eviction = true}, &cache_);
  }

  Invocation Settle(const Environment& environment) override {
    flags().Apply(environment);
    Invocation invocation;
    SettleCache(flags(), cache_, &target_.config, &invocation);
    CheckSampling(target_.sampling, invocation.labels);
    CheckPaths(flags(), target_.model, nullptr);
    for (const char* flag : {"--requests", "--out"}) {
      if (!flags().Given(flag))
        throw UsageError(fmt::format("{}: missing; give a file, or -", flag));
    }
    RefuseEmpty(flags(), "--requests", target_.requests);
    RefuseEmpty(flags(), "--out", target_.out);
    invocation.labels["prompt"] = flags().Label("--requests");
    invocation.labels["out"] = flags().Label("--out");
    invocation.command = target_;
    return invocation;
  }

 private:
  BatchFlags target_;
  ConfigDraft cache_;
};

class ChatCommand : public CommandDefinition {
 public:
  explicit ChatCommand(CLI::App* app) : CommandDefinition(app) {
    flags().Heading("Conversation");
    flags().OptionalText({"--system", "TEXT", "The system message in front of the conversation"},
                         &target_.system);
    AddPinSystemFlag(&flags(), &target_.pin_system);
    AddModelFlags(&flags(), &target_.model);
    target_.sampling.max_new_tokens = kChatAnswerTokens;
    target_.sampling.params = ChatSampling();
    AddSamplingFlags(&flags(), &target_.sampling);
    AddCacheFlags(&flags(), {.prompt_eviction = true}, &cache_);
  }

  Invocation Settle(const Environment& environment) override {
    flags().Apply(environment);
    Invocation invocation;
    SettleCache(flags(), cache_, &target_.config, &invocation);
    CheckSampling(target_.sampling, invocation.labels);
    CheckPaths(flags(), target_.model, nullptr);
    if (target_.system)
      Checked(invocation.labels, [&] { ValidateText(*target_.system, "system", 0); });
    invocation.command = target_;
    return invocation;
  }

 private:
  ChatFlags target_;
  ConfigDraft cache_;
};

}  // namespace

void CommandDefinition::ShortenHelp() {
  const std::string footer = app_->get_footer();
  const std::size_t examples = footer.find("Examples:\n");
  CAROUSEL_CHECK(examples != std::string::npos);
  const bool is_shorter = flags_.ShortenHelp() || examples > 1;
  if (is_shorter)
    app_->footer("\n" + footer.substr(examples) + "\n\n--help-all says everything there is.");
}

void RefuseEmpty(const FlagSet& flags, const char* flag, const std::string& value) {
  if (flags.Given(flag) && value.empty())
    throw UsageError(fmt::format("{}: is empty; give a name", flags.Label(flag)));
}

FieldLabels ModelLabels(const FlagSet& flags) {
  FieldLabels labels = flags.Labels();
  labels["tokenizer"] = flags.Label("--model");
  return labels;
}

EngineConfig CheckedConfig(const ConfigDraft& cache, const FieldLabels& labels) {
  EngineConfig config;
  Checked(labels, [&] { config = cache.Finished(); });
  return config;
}

CLI::App* AddCommand(CLI::App* parent, const char* name, const char* description,
                     const char* footer) {
  CLI::App* app = parent->add_subcommand(name, description);
  app->footer(footer);
  app->allow_extras();  // so that the messages about them are ours
  return app;
}

std::vector<std::unique_ptr<CommandDefinition>> DefineCommands(CLI::App* program) {
  std::vector<std::unique_ptr<CommandDefinition>> commands;
  commands.push_back(Define<ModelsCommand>(program, "models", "List the models that were imported",
                                           kModelsFooter));
  commands.push_back(Define<InfoCommand>(
      program, "info", "Say what a model is, what RoPE it has, and what rotation will do",
      kInfoFooter));
  commands.push_back(Define<StreamCommand>(
      program, "stream", "Read a text of any length and measure how well it is predicted",
      kStreamFooter));
  commands.push_back(
      Define<GenerateCommand>(program, "generate", "Answer one prompt", kGenerateFooter));
  commands.push_back(Define<EvaluateCommand>(
      program, "evaluate", "Run many conversations and report answers, scores and cache sizes",
      kEvaluateFooter));
  commands.push_back(Define<BatchCommand>(
      program, "batch", "Answer many requests of a file, several at once", kBatchFooter));
  commands.push_back(Define<ChatCommand>(program, "chat", "Talk without an end", kChatFooter));
  DefineBench(program, &commands);
  return commands;
}

}  // namespace carousel
