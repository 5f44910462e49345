// SPDX-License-Identifier: Apache-2.0
// Where the program's text goes.
#pragma once

#include <string>
#include <string_view>

namespace carousel {

// A file descriptor for text, unbuffered: what has been written is out, whatever happens next.
class TextOutput {
 public:
  // Does not own `fd`. `name` is for messages.
  TextOutput(int fd, std::string name);

  // Throws carousel::Error (kIo, field = the name) when it cannot be written.
  void Write(std::string_view text);
  // The same, failure unseen: for messages that nobody may be there to read.
  void TryWrite(std::string_view text) noexcept;
  int fd() const { return fd_; }
  bool is_terminal() const { return is_terminal_; }
  // Whether a terminal is to show colours (NO_COLOR and TERM=dumb say no).
  bool has_colour() const { return has_colour_; }
  // `text` in a pale shade where colours are shown.
  std::string Dimmed(std::string_view text) const;
  // The terminal's width in characters; 80 where it does not say.
  int columns() const;

 private:
  int fd_;
  std::string name_;
  bool is_terminal_;
  bool has_colour_;
};

struct Console {
  TextOutput out{1, "standard output"};
  TextOutput err{2, "standard error"};
};

}  // namespace carousel
