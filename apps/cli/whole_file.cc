// SPDX-License-Identifier: Apache-2.0
#include "cli/whole_file.h"

#include <fcntl.h>
#include <fmt/format.h>
#include <sys/stat.h>
#include <unistd.h>

#include <cerrno>
#include <cstdio>
#include <cstring>
#include <utility>

#include "carousel/error.h"

namespace carousel {
namespace {

// 0, or the error's number.
int WriteAll(int fd, std::string_view content) {
  while (!content.empty()) {
    const ssize_t written = write(fd, content.data(), content.size());
    if (written > 0) content.remove_prefix(static_cast<std::size_t>(written));
    if (written < 0 && errno != EINTR) return errno;
  }
  return 0;
}

}  // namespace

WholeFile::WholeFile(std::string path, int stdout_fd)
    : path_(std::move(path)), stdout_fd_(stdout_fd) {
  if (path_ == "-") return;
  struct stat status {};
  const bool exists = stat(path_.c_str(), &status) == 0;
  if (exists && S_ISDIR(status.st_mode)) Fail(EISDIR);
  is_plain_ = !exists || S_ISREG(status.st_mode);
  if (!is_plain_) return;
  WriteTo(path_ + ".part", O_CREAT | O_TRUNC, "");
  unlink((path_ + ".part").c_str());
}

void WholeFile::Write(std::string_view content) const {
  if (path_ == "-") {
    if (const int error = WriteAll(stdout_fd_, content); error != 0) Fail(error);
    return;
  }
  if (!is_plain_) return WriteTo(path_, 0, content);
  const std::string part = path_ + ".part";
  try {
    WriteTo(part, O_CREAT | O_TRUNC, content);
    if (std::rename(part.c_str(), path_.c_str()) != 0) Fail(errno);
  } catch (const Error&) {
    unlink(part.c_str());
    throw;
  }
}

void WholeFile::WriteTo(const std::string& path, int flags, std::string_view content) const {
  const int fd = open(path.c_str(), O_WRONLY | O_CLOEXEC | flags, 0666);
  if (fd < 0) Fail(errno);
  const int error = WriteAll(fd, content);
  const int close_error = close(fd) == 0 ? 0 : errno;
  if (error != 0 || close_error != 0) Fail(error != 0 ? error : close_error);
}

void WholeFile::Fail(int error) const {
  throw Error(ErrorCode::kIo, "json",
              fmt::format("cannot write {}: {}", path_ == "-" ? "standard output" : path_,
                          std::strerror(error)));
}

}  // namespace carousel
