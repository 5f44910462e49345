// SPDX-License-Identifier: Apache-2.0
#include "cache/disk_space.h"

#include <fcntl.h>
#include <sys/resource.h>
#include <unistd.h>

#include <algorithm>
#include <array>
#include <cerrno>
#include <system_error>

namespace carousel {
namespace {

// Takes the space by writing it. Some file systems (NFS) say only when they are told to finish that
// there is none.
int WriteZeros(int file, off_t offset, off_t bytes) {
  static constexpr std::array<char, std::size_t{64} << 10> kZeros{};
  for (const off_t end = offset + bytes; offset < end;) {
    const auto part = std::min(static_cast<std::size_t>(end - offset), kZeros.size());
    const ssize_t written = pwrite(file, kZeros.data(), part, offset);
    if (written == 0) return ENOSPC;
    if (written > 0) offset += written;
    if (written < 0 && errno != EINTR) return errno;
  }
  return fdatasync(file) == 0 ? 0 : errno;
}

}  // namespace

// Where a file system cannot set space aside, by writing.
int TakeDiskSpace(int file, std::size_t offset, std::size_t bytes) noexcept {
  rlimit limit{};
  if (getrlimit(RLIMIT_FSIZE, &limit) == 0 && limit.rlim_cur != RLIM_INFINITY &&
      offset + bytes > limit.rlim_cur) {
    return EFBIG;
  }
  const auto begin = static_cast<off_t>(offset);
  const auto length = static_cast<off_t>(bytes);
  int error = EINTR;
  while (error == EINTR) error = fallocate(file, 0, begin, length) == 0 ? 0 : errno;
  return error == EOPNOTSUPP || error == ENOSYS ? WriteZeros(file, begin, length) : error;
}

std::string Reason(int error) { return std::generic_category().message(error); }

}  // namespace carousel
