// SPDX-License-Identifier: Apache-2.0
#include "cli/json_lines.h"

#include <fcntl.h>
#include <fmt/format.h>
#include <sys/stat.h>
#include <unistd.h>

#include <cerrno>
#include <cstring>
#include <nlohmann/json.hpp>
#include <utility>

#include "carousel/error.h"

namespace carousel {

JsonLines::JsonLines(const std::string& path, int stdout_fd) : name_(path) {
  if (path == "-") {
    name_ = "standard output";
    fd_ = stdout_fd;
    has_lines_ = true;  // what others have written there stays
  } else {
    fd_ = open(path.c_str(), O_WRONLY | O_CREAT | O_CLOEXEC, 0666);
    owned_ = true;
    if (fd_ < 0) Fail(errno);
  }
  struct stat status {};
  is_regular_ = fstat(fd_, &status) == 0 && S_ISREG(status.st_mode);
}

JsonLines::~JsonLines() {
  if (owned_ && fd_ >= 0) close(fd_);
}

void JsonLines::Write(const nlohmann::ordered_json& object) {
  // Text that is no UTF-8 cannot come this far, but a replacement character is better than an
  // exception.
  const std::string line =
      object.dump(-1, ' ', false, nlohmann::ordered_json::error_handler_t::replace) + "\n";
  if (!std::exchange(has_lines_, true) && is_regular_ && ftruncate(fd_, 0) != 0) Fail(errno);
  std::size_t done = 0;
  while (done < line.size()) {
    const ssize_t written = write(fd_, line.data() + done, line.size() - done);
    if (written > 0) done += static_cast<std::size_t>(written);
    if (written >= 0 || errno == EINTR) continue;
    const int error = errno;
    const off_t end = lseek(fd_, 0, SEEK_CUR);
    const auto part = static_cast<off_t>(done);
    if (is_regular_ && done > 0 && end >= part && ftruncate(fd_, end - part) == 0)
      lseek(fd_, end - part, SEEK_SET);
    Fail(error);
  }
}

void JsonLines::Close() {
  if (!owned_) return;
  if (close(std::exchange(fd_, -1)) != 0) Fail(errno);
}

void JsonLines::Fail(int error) const {
  throw Error(ErrorCode::kIo, "json",
              fmt::format("cannot write {}: {}", name_, std::strerror(error)));
}

}  // namespace carousel
