// SPDX-License-Identifier: Apache-2.0
#include "cli/logits_file.h"

#include <fcntl.h>
#include <fmt/format.h>
#include <sys/stat.h>
#include <unistd.h>

#include <bit>
#include <cerrno>
#include <cstring>
#include <utility>
#include <vector>

#include "carousel/error.h"
#include "engine/logits.h"

namespace carousel {

static_assert(std::endian::native == std::endian::little, "rows are written as they lie in memory");

LogitsFile::LogitsFile(std::string path)
    : path_(std::move(path)), fd_(open(path_.c_str(), O_WRONLY | O_CREAT | O_CLOEXEC, 0666)) {
  if (fd_ < 0) Fail(errno);
}

LogitsFile::~LogitsFile() {
  if (fd_ >= 0) close(fd_);
}

void LogitsFile::Append(std::span<const float> logits) {
  struct stat status {};
  if (rows_ == 0 && fstat(fd_, &status) == 0 && S_ISREG(status.st_mode) && ftruncate(fd_, 0) != 0)
    Fail(errno);
  const double normaliser = LogSumExp(logits);
  std::vector<float> row(logits.size());
  for (std::size_t i = 0; i < row.size(); ++i)
    row[i] = static_cast<float>(static_cast<double>(logits[i]) - normaliser);
  std::span<const std::byte> bytes = std::as_bytes(std::span<const float>(row));
  while (!bytes.empty()) {
    const ssize_t written = write(fd_, bytes.data(), bytes.size());
    if (written > 0) bytes = bytes.subspan(static_cast<std::size_t>(written));
    if (written < 0 && errno != EINTR) Fail(errno);
  }
  ++rows_;
}

void LogitsFile::Close() {
  if (close(std::exchange(fd_, -1)) != 0) Fail(errno);
}

void LogitsFile::Fail(int error) const {
  throw Error(ErrorCode::kIo, "logits",
              fmt::format("cannot write {}: {}", path_, std::strerror(error)));
}

}  // namespace carousel
