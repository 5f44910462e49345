// SPDX-License-Identifier: Apache-2.0
#include "cli/json_lines.h"

#include <fcntl.h>
#include <fmt/format.h>
#include <unistd.h>

#include <cerrno>
#include <cstring>
#include <nlohmann/json.hpp>
#include <utility>

#include "carousel/error.h"
#include "cli/append_whole.h"

namespace carousel {

JsonLines::JsonLines(const std::string& path, int stdout_fd) : name_(path) {
  if (path == "-") {
    name_ = "standard output";
    fd_ = stdout_fd;
    has_begun_ = true;  // what others have written there stays
    return;
  }
  owned_ = true;
  fd_ = open(path.c_str(), O_WRONLY | O_CREAT | O_EXCL | O_CLOEXEC, 0666);
  is_new_ = fd_ >= 0;
  if (!is_new_) fd_ = open(path.c_str(), O_WRONLY | O_CREAT | O_CLOEXEC, 0666);
  if (fd_ < 0) Fail(errno);
}

JsonLines::~JsonLines() {
  if (owned_ && fd_ >= 0) close(fd_);
  if (is_new_ && !has_begun_) unlink(name_.c_str());
}

void JsonLines::Begin() {
  if (!std::exchange(has_begun_, true) && IsRegularFile(fd_) && ftruncate(fd_, 0) != 0) Fail(errno);
}

std::string LineOf(const nlohmann::ordered_json& object) {
  return object.dump(-1, ' ', false, nlohmann::ordered_json::error_handler_t::replace) + "\n";
}

void JsonLines::Write(const nlohmann::ordered_json& object) {
  const std::string line = LineOf(object);
  Begin();
  if (const int error = AppendWhole(fd_, line); error != 0) Fail(error);
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
