// SPDX-License-Identifier: Apache-2.0
#include "text/byte_source.h"

#include <fcntl.h>
#include <fmt/format.h>
#include <poll.h>
#include <sys/stat.h>
#include <unistd.h>

#include <array>
#include <cerrno>
#include <cstring>

#include "carousel/error.h"

namespace carousel {
namespace {

class FileDescriptorSource : public ByteSource {
 public:
  FileDescriptorSource(int fd, bool owned, std::string name, int wake_fd)
      : fd_(fd), owned_(owned), name_(std::move(name)), wake_fd_(wake_fd) {}
  FileDescriptorSource(const FileDescriptorSource&) = delete;
  FileDescriptorSource& operator=(const FileDescriptorSource&) = delete;
  ~FileDescriptorSource() override {
    if (owned_) close(fd_);
  }

  std::optional<std::size_t> Read(std::span<char> buffer) override {
    while (true) {
      // poll first: a signal between a check and a blocking read would go unseen until more input
      // comes.
      std::array<pollfd, 2> polled{pollfd{fd_, POLLIN, 0}, pollfd{wake_fd_, POLLIN, 0}};
      if (poll(polled.data(), polled.size(), -1) < 0) {
        if (errno == EINTR) continue;
        Fail("cannot wait for");
      }
      if (polled[1].revents != 0) return std::nullopt;
      const ssize_t count = read(fd_, buffer.data(), buffer.size());
      if (count >= 0) return static_cast<std::size_t>(count);
      if (errno != EINTR && errno != EAGAIN) Fail("cannot read");
    }
  }

 private:
  [[noreturn]] void Fail(std::string_view what) const {
    throw Error(ErrorCode::kIo, "text", fmt::format("{} {}: {}", what, name_, strerror(errno)));
  }

  int fd_;
  bool owned_;
  std::string name_;
  int wake_fd_;
};

}  // namespace

std::unique_ptr<ByteSource> OpenByteSource(const std::string& path, int wake_fd) {
  if (path == "-")
    return std::make_unique<FileDescriptorSource>(STDIN_FILENO, false, "standard input", wake_fd);
  const int fd = open(path.c_str(), O_RDONLY | O_CLOEXEC);
  const auto fail = [&path](int error) {
    throw Error(ErrorCode::kIo, "text", fmt::format("cannot open {}: {}", path, strerror(error)));
  };
  if (fd < 0) fail(errno);
  struct stat status {};
  if (fstat(fd, &status) == 0 && S_ISDIR(status.st_mode)) {
    close(fd);
    fail(EISDIR);
  }
  return std::make_unique<FileDescriptorSource>(fd, true, path, wake_fd);
}

}  // namespace carousel
