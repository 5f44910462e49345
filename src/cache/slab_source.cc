// SPDX-License-Identifier: Apache-2.0
#include "cache/slab_source.h"

#include <fcntl.h>
#include <fmt/format.h>
#include <sys/mman.h>
#include <sys/resource.h>
#include <unistd.h>

#include <cerrno>
#include <system_error>

#include "carousel/error.h"

namespace carousel {
namespace {

constexpr std::size_t kGigantic = static_cast<std::size_t>(-1) / 4;

std::string Reason(int error) { return std::generic_category().message(error); }

// posix_fallocate, without the signal that a limit on file sizes would send.
int TakeDiskSpace(int file, std::size_t offset, std::size_t bytes) {
  rlimit limit{};
  if (getrlimit(RLIMIT_FSIZE, &limit) == 0 && limit.rlim_cur != RLIM_INFINITY &&
      offset + bytes > limit.rlim_cur) {
    return EFBIG;
  }
  int error = EINTR;
  while (error == EINTR) {
    error = posix_fallocate(file, static_cast<off_t>(offset), static_cast<off_t>(bytes));
  }
  return error;
}

}  // namespace

std::byte* HeapSlabs::Take(std::size_t bytes) {
  slabs_.reserve(slabs_.size() + 1);
  return slabs_.emplace_back(bytes).data();
}

FileSlabs::FileSlabs(const std::string& path) : path_(path) {
  file_ = open(path.c_str(), O_RDWR | O_CREAT | O_EXCL | O_CLOEXEC, S_IRUSR | S_IWUSR);
  if (file_ < 0) {
    const int error = errno;
    throw Error(
        ErrorCode::kInvalidArgument, "recall_store",
        error == EEXIST
            ? fmt::format("{} exists, and what is in it would be lost; name a new file", path)
            : fmt::format("{} cannot be made: {}; name a file in a folder that you may "
                          "write to, or use ram",
                          path, Reason(error)));
  }
  unlink(path.c_str());
}

FileSlabs::~FileSlabs() {
  for (const auto& [address, bytes] : maps_) munmap(address, bytes);
  close(file_);
}

std::byte* FileSlabs::Take(std::size_t bytes) {
  const auto page = static_cast<std::size_t>(sysconf(_SC_PAGESIZE));
  int error = ENOSPC;
  if (bytes < kGigantic) {
    bytes = (bytes + page - 1) / page * page;
    error = TakeDiskSpace(file_, size_, bytes);
  }
  void* address = MAP_FAILED;
  if (error == 0) {
    maps_.reserve(maps_.size() + 1);
    address =
        mmap(nullptr, bytes, PROT_READ | PROT_WRITE, MAP_SHARED, file_, static_cast<off_t>(size_));
    if (address == MAP_FAILED) error = errno;
  }
  if (error != 0) {
    throw Error(ErrorCode::kOutOfMemory, "recall_store",
                fmt::format("{} cannot grow from {} bytes by {}: {}; free some space, or set a "
                            "lower recall_limit",
                            path_, size_, bytes, Reason(error)));
  }
  maps_.emplace_back(address, bytes);
  size_ += bytes;
  return static_cast<std::byte*>(address);
}

}  // namespace carousel
