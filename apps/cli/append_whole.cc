// SPDX-License-Identifier: Apache-2.0
#include "cli/append_whole.h"

#include <sys/stat.h>
#include <unistd.h>

#include <cerrno>

namespace carousel {

int AppendWhole(int fd, std::string_view bytes) {
  off_t done = 0;
  while (!bytes.empty()) {
    const ssize_t written = write(fd, bytes.data(), bytes.size());
    if (written > 0) {
      done += written;
      bytes.remove_prefix(static_cast<std::size_t>(written));
    }
    if (written >= 0 || errno == EINTR) continue;
    const int error = errno;
    const off_t end = lseek(fd, 0, SEEK_CUR);
    if (done > 0 && IsRegularFile(fd) && end >= done && ftruncate(fd, end - done) == 0)
      lseek(fd, end - done, SEEK_SET);
    return error;
  }
  return 0;
}

bool IsRegularFile(int fd) {
  struct stat status {};
  return fstat(fd, &status) == 0 && S_ISREG(status.st_mode);
}

}  // namespace carousel
