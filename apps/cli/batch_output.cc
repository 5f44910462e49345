// SPDX-License-Identifier: Apache-2.0
#include "cli/batch_output.h"

#include <fcntl.h>
#include <fmt/format.h>
#include <sys/file.h>
#include <sys/stat.h>
#include <unistd.h>

#include <cerrno>
#include <cstring>
#include <nlohmann/json.hpp>
#include <string_view>
#include <utility>

#include "api/batch_line.h"
#include "base/lines.h"
#include "carousel/error.h"
#include "cli/append_whole.h"
#include "cli/json_lines.h"

namespace carousel {

BatchOutput::BatchOutput(const std::string& path, int stdout_fd) : name_(path) {
  if (path == "-") {
    name_ = "standard output";
    fd_ = stdout_fd;
    return;
  }
  owned_ = true;
  struct stat status {};
  const bool is_stream = stat(path.c_str(), &status) == 0 && !S_ISREG(status.st_mode);
  // A pipe that we could read from ourselves would never end for who waits at the other end.
  fd_ = open(path.c_str(), (is_stream ? O_WRONLY : O_RDWR | O_CREAT) | O_CLOEXEC, 0666);
  if (fd_ < 0) Fail(errno);
  try {
    if (IsRegularFile(fd_)) {
      Lock();
      ReadFound();
    }
  } catch (...) {
    close(fd_);
    throw;
  }
}

BatchOutput::~BatchOutput() {
  if (owned_ && fd_ >= 0) close(fd_);
}

// Against another batch whose lines would come between ours.
void BatchOutput::Lock() {
  int locked = -1;
  do {
    locked = flock(fd_, LOCK_EX | LOCK_NB);
  } while (locked != 0 && errno == EINTR);
  if (locked == 0) return;
  if (errno == EWOULDBLOCK) {
    throw Error(
        ErrorCode::kIo, "out",
        fmt::format("another batch is writing to {}; wait for it, or give another file", name_));
  }
  throw Error(ErrorCode::kIo, "out",
              fmt::format("{} cannot be locked against other batches: {}; give a file on another "
                          "file system, or -",
                          name_, std::strerror(errno)));
}

// Leaves the file at its end, behind its last whole line.
void BatchOutput::ReadFound() {
  std::string text;
  std::string buffer(1 << 16, '\0');
  for (;;) {
    const ssize_t bytes = read(fd_, buffer.data(), buffer.size());
    if (bytes < 0 && errno == EINTR) continue;
    if (bytes < 0) Fail(errno);
    if (bytes == 0) break;
    text.append(buffer, 0, static_cast<std::size_t>(bytes));
  }
  const std::size_t whole = text.rfind('\n') + 1;  // 0 where there is none
  std::int64_t number = 0;
  for (std::string_view rest(text.data(), whole); !rest.empty();) {
    ++number;
    const std::string_view line = TakeLine(&rest);
    if (PieceOf(line) != OutputPiece::kLine) RefuseLine(number);
    ++found_[CustomIdOf(line)];
  }
  if (whole == text.size()) return;
  // The last line's end is missing, or more of it.
  const std::string_view last = std::string_view(text).substr(whole);
  const OutputPiece piece = PieceOf(last);
  if (piece == OutputPiece::kNeither) RefuseLine(number + 1);
  if (piece == OutputPiece::kLine) {
    ++found_[CustomIdOf(last)];
    if (const int error = AppendWhole(fd_, "\n"); error != 0) Fail(error);
    return;
  }
  if (ftruncate(fd_, static_cast<off_t>(whole)) != 0) Fail(errno);
  if (lseek(fd_, static_cast<off_t>(whole), SEEK_SET) < 0) Fail(errno);
}

void BatchOutput::RefuseLine(std::int64_t number) const {
  throw Error(ErrorCode::kIo, "out",
              fmt::format("line {} of {} is none that a batch has written; give a new file, or one "
                          "that a batch has written",
                          number, name_));
}

bool BatchOutput::TakeFound(const std::optional<std::string>& custom_id) {
  const auto found = found_.find(custom_id);
  if (found == found_.end() || found->second == 0) return false;
  --found->second;
  return true;
}

void BatchOutput::Write(const nlohmann::ordered_json& line) {
  if (const int error = AppendWhole(fd_, LineOf(line)); error != 0) Fail(error);
}

void BatchOutput::Close() {
  if (!owned_) return;
  if (close(std::exchange(fd_, -1)) != 0) Fail(errno);
}

void BatchOutput::Fail(int error) const {
  throw Error(ErrorCode::kIo, "out",
              fmt::format("cannot write {}: {}", name_, std::strerror(error)));
}

}  // namespace carousel
