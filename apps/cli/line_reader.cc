// SPDX-License-Identifier: Apache-2.0
#include "cli/line_reader.h"

#include <histedit.h>
#include <poll.h>
#include <unistd.h>

#include <array>
#include <cerrno>
#include <clocale>
#include <csignal>
#include <cstdio>
#include <cstdlib>
#include <optional>
#include <string_view>
#include <utility>

#include "base/utf8.h"
#include "cli/bracketed_paste.h"
#include "text/byte_source.h"

namespace carousel {
namespace {

class ScriptReader : public LineReader {
 public:
  explicit ScriptReader(std::unique_ptr<ByteSource> source) : source_(std::move(source)) {}

  InputLine Read(const std::string& /*prompt*/) override {
    while (true) {
      if (const std::size_t end = buffer_.find('\n'); end != std::string::npos) {
        std::string line = buffer_.substr(0, end);
        buffer_.erase(0, end + 1);
        return Line(std::move(line));
      }
      std::array<char, 4096> bytes{};
      const std::optional<std::size_t> count = source_->Read(bytes);
      if (!count) {
        buffer_.clear();
        return {InputLine::Kind::kInterrupted, ""};
      }
      if (*count == 0) {
        if (buffer_.empty()) return {InputLine::Kind::kEnd, ""};
        return Line(std::exchange(buffer_, std::string()));
      }
      buffer_.append(bytes.data(), *count);
    }
  }

  void Remember(const std::string& /*text*/) override {}

 private:
  InputLine Line(std::string line) {
    constexpr std::string_view kByteOrderMark = "\xEF\xBB\xBF";
    if (line.ends_with('\r')) line.pop_back();
    if (std::exchange(at_first_, false) && line.starts_with(kByteOrderMark))
      line.erase(0, kByteOrderMark.size());
    return {InputLine::Kind::kLine, std::move(line)};
  }

  std::unique_ptr<ByteSource> source_;
  std::string buffer_;
  bool at_first_ = true;
};

volatile std::sig_atomic_t continued = 0;
volatile std::sig_atomic_t resized = 0;
void OnContinued(int /*signal_number*/) { continued = 1; }
void OnResized(int /*signal_number*/) { resized = 1; }

// libedit, through its own interface rather than its imitation of readline: only there can the
// reading of a character be ours, and end at once when Ctrl-C comes, without a jump out of a signal
// handler.
class EditedLineReader : public LineReader {
 public:
  explicit EditedLineReader(const Interrupt& interrupt) : interrupt_(interrupt) {
    // libedit turns what is typed into characters by the locale; without one, by UTF-8 all the
    // same.
    if (std::setlocale(LC_CTYPE, "") == nullptr || MB_CUR_MAX == 1)
      std::setlocale(LC_CTYPE, "C.UTF-8");
    editor_ = el_init("carousel", stdin, stdout, stderr);
    history_ = history_init();
    HistEvent event{};
    history(history_, &event, H_SETSIZE, 1000);
    history(history_, &event, H_SETUNIQUE, 1);
    el_set(editor_, EL_CLIENTDATA, this);
    el_set(editor_, EL_EDITOR, "emacs");
    el_set(editor_, EL_SIGNAL, 0);  // Ctrl-C is Interrupt's
    el_set(editor_, EL_PROMPT, &EditedLineReader::Prompt);
    el_set(editor_, EL_HIST, history, history_);
    el_set(editor_, EL_GETCFN, &EditedLineReader::ReadCharacter);
    el_set(editor_, EL_BIND, "^R", "em-inc-search-prev", nullptr);
    el_source(editor_, nullptr);  // the user's ~/.editrc
    // libedit runs an editing function for a key. Pastes have one of their own, which no keyboard
    // needs; its meaning is set last and in both keymaps of vi, so that pastes work with any.
    el_set(editor_, EL_ADDFN, "carousel-paste", "Insert what was pasted",
           &EditedLineReader::InsertPaste);
    el_set(editor_, EL_BIND, "^_", "carousel-paste", nullptr);
    el_set(editor_, EL_BIND, "-a", "^_", "carousel-paste", nullptr);
    // Or the CR LF of a paste would come as two line ends.
    el_set(editor_, EL_SETTY, "-d", "-icrnl", "-inlcr", nullptr);
    std::signal(SIGCONT, OnContinued);
    std::signal(SIGWINCH, OnResized);
  }
  ~EditedLineReader() override {
    std::signal(SIGCONT, SIG_DFL);
    std::signal(SIGWINCH, SIG_DFL);
    el_end(editor_);
    history_end(history_);
  }
  EditedLineReader(const EditedLineReader&) = delete;
  EditedLineReader& operator=(const EditedLineReader&) = delete;

  InputLine Read(const std::string& prompt) override {
    prompt_ = prompt;
    el_resize(editor_);
    // el_gets() would show the prompt first and prepare the terminal after it; a Ctrl-D typed in
    // between would be read as an end of input that belongs to nobody, and lost.
    el_set(editor_, EL_PREP_TERM, 1);
    Tell(kMarkPastes);
    int count = 0;
    const char* line = el_gets(editor_, &count);
    Tell(kLeavePastes);
    if (interrupt_.raised()) {
      std::fputs("\n", stdout);
      std::fflush(stdout);
      return {InputLine::Kind::kInterrupted, ""};
    }
    if (line == nullptr || count <= 0) {
      std::fputs("\n", stdout);
      std::fflush(stdout);
      return {InputLine::Kind::kEnd, ""};
    }
    std::string text(line, static_cast<std::size_t>(count));
    if (text.ends_with('\n')) text.pop_back();
    return {InputLine::Kind::kLine, std::move(text)};
  }

  void Remember(const std::string& text) override {
    HistEvent event{};
    history(history_, &event, H_ENTER, text.c_str());
  }

 private:
  static EditedLineReader* Self(EditLine* editor) {
    void* self = nullptr;
    el_get(editor, EL_CLIENTDATA, &self);
    return static_cast<EditedLineReader*>(self);
  }

  static char* Prompt(EditLine* editor) { return Self(editor)->prompt_.data(); }

  // libedit's el_rfunc_t: 1 for a character, 0 at the end, -1 for what ends the line unread.
  static int ReadCharacter(EditLine* editor, wchar_t* character) {
    std::string bytes;
    while (true) {
      char byte = 0;
      const int status = Self(editor)->ReadKey(&byte);
      if (status != 1) return status;
      bytes += byte;
      const Utf8Unit unit = FirstUtf8Unit(bytes);
      if (unit.kind == Utf8Unit::Kind::kIncomplete) continue;
      const bool whole = unit.kind == Utf8Unit::Kind::kCharacter;
      *character = static_cast<wchar_t>(whole ? unit.code_point : char32_t{0xFFFD});
      return 1;
    }
  }

  // The same for a byte; a paste is the key that inserts it.
  int ReadKey(char* byte) {
    while (true) {
      if (const std::optional<char> key = parser_.TakeKey()) {
        *byte = *key;
        return 1;
      }
      if (std::optional<std::string> paste = parser_.TakePaste()) {
        pasted_ = *std::move(paste);
        *byte = kPasteKey;
        return 1;
      }
      const Waited waited = Wait(parser_.holds_back() ? kPauseMilliseconds : -1);
      if (waited == Waited::kInterrupted) return -1;
      if (waited == Waited::kPause) {
        parser_.ReleaseKeys();
        continue;
      }
      // What is typed ahead is left to whoever reads next, so a key is read at a time.
      std::array<char, 4096> bytes{};
      const ssize_t count = read(STDIN_FILENO, bytes.data(), parser_.pasting() ? bytes.size() : 1);
      if (count == 0) return 0;
      if (count < 0 && errno != EINTR && errno != EAGAIN) return -1;
      for (ssize_t i = 0; i < count; ++i) parser_.Push(bytes[static_cast<std::size_t>(i)]);
    }
  }

  // libedit's el_func_t.
  static unsigned char InsertPaste(EditLine* editor, wint_t /*key*/) {
    const std::string text = std::exchange(Self(editor)->pasted_, std::string());
    return text.empty() || el_insertstr(editor, text.c_str()) != 0 ? CC_ERROR : CC_REFRESH;
  }

  static void Tell(std::string_view sequence) {
    std::fwrite(sequence.data(), 1, sequence.size(), stdout);
    std::fflush(stdout);
  }

  enum class Waited { kReady, kPause, kInterrupted };

  // Until there is something to read, or nothing for so long (-1: for ever).
  Waited Wait(int milliseconds) {
    while (true) {
      std::array<pollfd, 2> polled{pollfd{STDIN_FILENO, POLLIN, 0},
                                   pollfd{interrupt_.wake_fd(), POLLIN, 0}};
      const int ready = poll(polled.data(), polled.size(), milliseconds);
      if (interrupt_.raised()) return Waited::kInterrupted;
      if (ready > 0) return Waited::kReady;
      if (ready == 0) return Waited::kPause;
      if (errno != EINTR) return Waited::kInterrupted;
      if (resized != 0) {
        resized = 0;
        el_resize(editor_);
      }
      if (continued != 0) {
        continued = 0;
        el_set(editor_, EL_PREP_TERM, 1);  // the shell has put the terminal back while we slept
        Tell(kMarkPastes);
        el_set(editor_, EL_REFRESH);
      }
    }
  }

  static constexpr char kPasteKey = '\x1f';  // ^_
  // The bytes of a mark come together; an Escape that somebody typed comes alone.
  static constexpr int kPauseMilliseconds = 50;

  const Interrupt& interrupt_;
  EditLine* editor_ = nullptr;
  History* history_ = nullptr;
  std::string prompt_;
  PasteParser parser_;
  std::string pasted_;  // to be inserted
};

}  // namespace

std::unique_ptr<LineReader> MakeLineReader(const Interrupt& interrupt) {
  if (isatty(STDIN_FILENO) == 1 && isatty(STDOUT_FILENO) == 1)
    return std::make_unique<EditedLineReader>(interrupt);
  return MakeScriptReader(OpenByteSource("-", interrupt.wake_fd()));
}

std::unique_ptr<LineReader> MakeScriptReader(std::unique_ptr<ByteSource> source) {
  return std::make_unique<ScriptReader>(std::move(source));
}

InputLine ReadMessage(LineReader* reader) {
  std::string message;
  InputLine line = reader->Read("> ");
  while (line.kind == InputLine::Kind::kLine) {
    message += line.text;
    if (!message.ends_with('\\')) return {InputLine::Kind::kLine, std::move(message)};
    message.back() = '\n';
    line = reader->Read(". ");
  }
  // A message that ends with the input counts as it is; one that was interrupted is dropped.
  if (line.kind == InputLine::Kind::kEnd && !message.empty())
    return {InputLine::Kind::kLine, std::move(message)};
  return line;
}

}  // namespace carousel
