// SPDX-License-Identifier: Apache-2.0
#include "cli/logits_file.h"

#include <fcntl.h>
#include <fmt/format.h>
#include <unistd.h>

#include <bit>
#include <cerrno>
#include <cstring>
#include <string_view>
#include <utility>
#include <vector>

#include "carousel/error.h"
#include "cli/append_whole.h"
#include "engine/logits.h"

namespace carousel {

static_assert(std::endian::native == std::endian::little, "rows are written as they lie in memory");

LogitsFile::LogitsFile(std::string path)
    : path_(std::move(path)), fd_(open(path_.c_str(), O_WRONLY | O_CREAT | O_CLOEXEC, 0666)) {
  if (fd_ < 0) Fail(errno);
  if (!IsRegularFile(fd_) || ftruncate(fd_, 0) == 0) return;
  const int error = errno;
  close(fd_);
  Fail(error);
}

LogitsFile::~LogitsFile() {
  if (fd_ >= 0) close(fd_);
}

void LogitsFile::Append(std::span<const float> logits) {
  const double normaliser = LogSumExp(logits);
  std::vector<float> row(logits.size());
  for (std::size_t i = 0; i < row.size(); ++i)
    row[i] = static_cast<float>(static_cast<double>(logits[i]) - normaliser);
  const std::string_view bytes(reinterpret_cast<const char*>(row.data()),
                               row.size() * sizeof(float));
  if (const int error = AppendWhole(fd_, bytes); error != 0) Fail(error);
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
