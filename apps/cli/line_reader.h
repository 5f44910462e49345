// SPDX-License-Identifier: Apache-2.0
// Lines from a person at a terminal, or from a script through a pipe.
#pragma once

#include <memory>
#include <string>

#include "cli/interrupt.h"
#include "text/byte_source.h"

namespace carousel {

struct InputLine {
  enum class Kind {
    kLine,
    kEnd,          // end of input: Ctrl-D, or the pipe is closed
    kInterrupted,  // Ctrl-C; what had been typed is dropped
  };
  Kind kind = Kind::kEnd;
  std::string text;  // of a kLine, without the line's end
};

class LineReader {
 public:
  virtual ~LineReader() = default;
  virtual InputLine Read(const std::string& prompt) = 0;
  // Offers a text again with the up arrow.
  virtual void Remember(const std::string& text) = 0;
};

// Line editing with history where standard input and output are a terminal, else the lines of a
// script, without prompts. What is pasted at a terminal is one text, with its lines. `interrupt`
// must outlive the reader.
std::unique_ptr<LineReader> MakeLineReader(const Interrupt& interrupt);

// The lines of a pipe or a file. They end with LF or CR LF; a CR elsewhere belongs to the line. A
// byte order mark at the beginning is left out.
std::unique_ptr<LineReader> MakeScriptReader(std::unique_ptr<ByteSource> source);

// Reads on while lines end in a backslash, which becomes a line end.
InputLine ReadMessage(LineReader* reader);

}  // namespace carousel
