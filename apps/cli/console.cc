// SPDX-License-Identifier: Apache-2.0
#include "cli/console.h"

#include <fmt/format.h>
#include <sys/ioctl.h>
#include <unistd.h>

#include <cerrno>
#include <cstdlib>
#include <cstring>
#include <utility>

#include "carousel/error.h"

namespace carousel {
namespace {

// 0, or the errno of the write that failed.
int WriteAll(int fd, std::string_view text) {
  while (!text.empty()) {
    const ssize_t written = write(fd, text.data(), text.size());
    if (written < 0 && errno != EINTR) return errno;
    if (written > 0) text.remove_prefix(static_cast<std::size_t>(written));
  }
  return 0;
}

bool WantsColour() {
  const char* no_color = std::getenv("NO_COLOR");
  const char* term = std::getenv("TERM");
  return (no_color == nullptr || *no_color == '\0') && term != nullptr &&
         std::strcmp(term, "dumb") != 0;
}

}  // namespace

TextOutput::TextOutput(int fd, std::string name)
    : fd_(fd),
      name_(std::move(name)),
      is_terminal_(isatty(fd) == 1),
      has_colour_(is_terminal_ && WantsColour()) {}

void TextOutput::Write(std::string_view text) {
  if (const int error = WriteAll(fd_, text); error != 0)
    throw Error(ErrorCode::kIo, name_, fmt::format("cannot be written: {}", strerror(error)));
}

void TextOutput::TryWrite(std::string_view text) noexcept { WriteAll(fd_, text); }

std::string TextOutput::Dimmed(std::string_view text) const {
  return has_colour_ ? fmt::format("\x1b[2m{}\x1b[0m", text) : std::string(text);
}

int TextOutput::columns() const {
  winsize size{};
  return ioctl(fd_, TIOCGWINSZ, &size) == 0 && size.ws_col > 0 ? size.ws_col : 80;
}

}  // namespace carousel
