// SPDX-License-Identifier: Apache-2.0
// carousel chat: a conversation without an end.
#include <fmt/format.h>

#include <cerrno>
#include <csignal>
#include <cstdio>
#include <cstring>
#include <fstream>
#include <new>
#include <nlohmann/json.hpp>
#include <optional>

#include "answers/conversation.h"
#include "answers/prompt_file.h"
#include "carousel/error.h"
#include "cli/commands.h"
#include "cli/error_text.h"
#include "cli/interrupt.h"
#include "cli/line_reader.h"
#include "cli/numbers.h"
#include "cli/recall_notice.h"
#include "measure/process_memory.h"
#include "text/text_pieces.h"

namespace carousel {
namespace {

constexpr std::string_view kHelp =
    "/reset       forget the conversation and begin anew\n"
    "/stats       what is remembered, what it takes, how fast it goes\n"
    "/save FILE   write the conversation; as JSON if FILE ends in .json\n"
    "/exit        end the chat (Ctrl-D)\n"
    "A line that begins with // is said with one /. A backslash at a line's end continues it.\n"
    "Ctrl-C stops an answer.\n";

// Writes beside the file and moves it there when it is whole.
void SaveTranscript(const std::vector<Message>& messages, const std::string& path) {
  const std::string part = path + ".part";
  {
    std::ofstream file(part, std::ios::binary | std::ios::trunc);
    if (path.ends_with(".json")) {
      nlohmann::ordered_json list = nlohmann::ordered_json::array();
      for (const Message& message : messages)
        list.push_back({{"role", message.role}, {"content", message.content}});
      file << list.dump(2) << '\n';
    } else {
      for (const Message& message : messages)
        file << "## " << message.role << "\n\n" << message.content << "\n\n";
    }
    file.close();
    if (file.fail()) {
      const int error = errno;
      std::remove(part.c_str());
      throw Error(ErrorCode::kIo, path, fmt::format("cannot be written: {}", std::strerror(error)));
    }
  }
  if (std::rename(part.c_str(), path.c_str()) != 0) {
    const int error = errno;
    std::remove(part.c_str());
    throw Error(ErrorCode::kIo, path, fmt::format("cannot be written: {}", std::strerror(error)));
  }
}

class Chat {
 public:
  Chat(const ChatFlags& flags, const TurnFormat& format, const LoadedEngine& loaded,
       const Interrupt& interrupt, Console* console)
      : engine_(loaded.engine.get()),
        conversation_(engine_, *loaded.tokenizer, format,
                      {.system = flags.system,
                       .pin_system = flags.pin_system,
                       .max_new_tokens = flags.sampling.max_new_tokens,
                       .sampling = flags.sampling.params,
                       .stops = flags.sampling.stops}),
        interrupt_(interrupt),
        console_(console) {}

  // What a line of input asks for. False: the chat ends.
  bool Handle(const std::string& line);
  // Whether a message got no answer because of an error.
  bool has_failed() const { return has_failed_; }

 private:
  bool RunCommand(const std::string& line);
  void Say(const std::string& message);
  void NoteTakenBack(std::string_view why);
  void Note(std::string_view text) { console_->err.TryWrite(console_->err.Dimmed(text) + "\n"); }
  void NoteTurn(const Answer& answer);
  std::string Stats() const;

  SingleSequenceEngine* engine_;
  Conversation conversation_;
  const Interrupt& interrupt_;
  Console* console_;
  bool has_failed_ = false;
  RecallNotice recall_notice_;
  double last_tokens_per_second_ = 0.0;
};

bool Chat::Handle(const std::string& line) {
  if (line.find_first_not_of(" \t\n\r") == std::string::npos) return true;
  try {
    if (line.starts_with('/') && !line.starts_with("//")) return RunCommand(line);
    Say(line.starts_with("//") ? line.substr(1) : line);
  } catch (const Error& error) {
    console_->err.TryWrite(fmt::format("carousel: {}\n", ErrorText(error, {})));
    if (error.code() == ErrorCode::kIo && error.field() == "standard output") throw;
  }
  return true;
}

bool Chat::RunCommand(const std::string& line) {
  const std::size_t space = line.find(' ');
  const std::string command = line.substr(0, space);
  const std::size_t begin = line.find_first_not_of(' ', space);
  const std::string argument = begin == std::string::npos ? "" : line.substr(begin);
  if (command == "/exit" || command == "/quit") return false;
  if (command == "/help") {
    console_->err.TryWrite(kHelp);
  } else if (command == "/stats") {
    Note(Stats());
  } else if (command == "/reset") {
    conversation_.Reset();
    Note("forgotten; the conversation begins anew");
  } else if (command == "/save") {
    if (argument.empty()) throw Error(ErrorCode::kInvalidArgument, "/save", "give a file's name");
    SaveTranscript(conversation_.messages(), argument);
    Note(fmt::format("saved {} messages to {}", conversation_.messages().size(), argument));
  } else {
    throw Error(ErrorCode::kInvalidArgument, command, "no such command; /help lists them");
  }
  return true;
}

void Chat::Say(const std::string& message) {
  ValidateText(message, "this line", 0);
  bool is_line_open = false;
  Answer answer;
  const auto fail = [&] {
    has_failed_ = true;
    if (is_line_open) console_->out.TryWrite("\n");
    NoteTakenBack("no answer");
  };
  try {
    answer = conversation_.Say(message, {.show =
                                             [&](std::string_view part) {
                                               is_line_open = true;
                                               console_->out.Write(part);
                                             },
                                         .is_cancelled = [&] { return interrupt_.raised(); }});
  } catch (const Error&) {
    fail();
    throw;
  } catch (const std::bad_alloc&) {
    fail();
    throw Error(ErrorCode::kOutOfMemory, "memory",
                "there is none left for an answer; end other programs, or start with a smaller "
                "--max-cache-size");
  }
  if (answer.tokens.empty() && answer.finish_reason == FinishReason::kCancelled) {
    NoteTakenBack("stopped before your message was read");
    return;
  }
  console_->out.Write("\n");
  console_->err.TryWrite(recall_notice_.Once(*engine_));
  last_tokens_per_second_ = answer.decode_tokens_per_second();
  NoteTurn(answer);
}

// Says that a message left no trace, and what that costs the next one.
void Chat::NoteTakenBack(std::string_view why) {
  const std::int64_t again = conversation_.tokens_to_read_again();
  Note(fmt::format(
      "{}; your message is taken back{}", why,
      again == 0
          ? ""
          : fmt::format(", and the next one reads the {} tokens before it again", Grouped(again))));
}

void Chat::NoteTurn(const Answer& answer) {
  const SequenceMetrics metrics = engine_->metrics();
  std::string_view ending;
  if (answer.finish_reason == FinishReason::kCancelled) ending = "; stopped";
  if (answer.finish_reason == FinishReason::kLength) ending = "; cut off at --max-new-tokens";
  Note(fmt::format("remembered {} of {} tokens, {} forgotten; {:.0f} tok/s{}",
                   Grouped(metrics.resident_tokens), Grouped(metrics.logical_tokens),
                   Grouped(metrics.logical_tokens - metrics.resident_tokens),
                   last_tokens_per_second_, ending));
}

std::string Chat::Stats() const {
  const SequenceMetrics metrics = engine_->metrics();
  return fmt::format(
      "{} messages, {} tokens: {} remembered, {} forgotten in {} evictions\n"
      "cache: {} in use of {} ({} bytes per token); rotation {}, positions {}\n"
      "memory: {}; last answer at {:.1f} tok/s",
      conversation_.messages().size(), Grouped(metrics.logical_tokens),
      Grouped(metrics.resident_tokens), Grouped(metrics.logical_tokens - metrics.resident_tokens),
      Grouped(metrics.evictions), Megabytes(metrics.cache_bytes), Megabytes(metrics.reserved_bytes),
      Grouped(metrics.cache_bytes_per_token), Name(metrics.rotation), Name(metrics.positions),
      Megabytes(ReadProcessMemory().rss_bytes), last_tokens_per_second_);
}

}  // namespace

int RunChat(const ChatFlags& flags, Backend* backend, Console* console) {
  const TurnFormat format =
      LoadTurns(flags.model.directory,
                "or use carousel generate --raw and write the template's marks yourself");
  format.Beginning(flags.system);  // refuses a system message without a place
  const LoadedEngine loaded = Load(backend, flags.model, flags.config, &console->err);
  Interrupt interrupt;
  interrupt.Watch(loaded.engine.get());
  const std::unique_ptr<LineReader> reader = MakeLineReader(interrupt);
  const bool interactive = console->err.is_terminal() && console->out.is_terminal();
  if (interactive)
    console->err.TryWrite(
        console->err.Dimmed(fmt::format("{}. /help lists the commands, Ctrl-D ends the chat.",
                                        loaded.engine->model().spec().name)) +
        "\n");
  Chat chat(flags, format, loaded, interrupt, console);
  // Who types has seen what went wrong; a script has to be told.
  const auto ended = [&] { return chat.has_failed() && !interactive ? kExitFailure : 0; };
  while (true) {
    const InputLine line = ReadMessage(reader.get());
    if (line.kind == InputLine::Kind::kEnd) return ended();
    if (line.kind == InputLine::Kind::kInterrupted) {
      // SIGTERM, or Ctrl-C where nobody types.
      if (interrupt.signal() != SIGINT || !interactive) return interrupt.exit_status();
      interrupt.Clear();
      continue;
    }
    reader->Remember(line.text);
    if (!chat.Handle(line.text)) return ended();
    if (interrupt.raised()) {
      if (interrupt.signal() != SIGINT) return interrupt.exit_status();
      interrupt.Clear();
    }
  }
}

}  // namespace carousel
