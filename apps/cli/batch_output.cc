// SPDX-License-Identifier: Apache-2.0
#include "cli/batch_output.h"

#include <fcntl.h>
#include <fmt/format.h>
#include <sys/file.h>
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
  fd_ = open(path.c_str(), O_RDWR | O_CREAT | O_CLOEXEC, 0666);
  if (fd_ < 0) Fail(errno);
  try {
    if (IsRegularFile(fd_)) {
      if (flock(fd_, LOCK_EX | LOCK_NB) != 0) {
        throw Error(ErrorCode::kIo, "out",
                    fmt::format("another batch is writing to {}; wait for it, or give another file",
                                name_));
      }
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
    if (line.empty() || line.front() != '{' || line.back() != '}') {
      throw Error(ErrorCode::kIo, "out",
                  fmt::format("line {} of {} is none of a batch; give a new file, or one that a "
                              "batch has written",
                              number, name_));
    }
    ++found_[CustomIdOf(line)];
  }
  if (whole < text.size() && text.front() != '{') {
    throw Error(ErrorCode::kIo, "out",
                fmt::format("{} is none of a batch; give a new file, or one that a batch has "
                            "written",
                            name_));
  }
  if (ftruncate(fd_, static_cast<off_t>(whole)) != 0) Fail(errno);
  if (lseek(fd_, static_cast<off_t>(whole), SEEK_SET) < 0) Fail(errno);
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
