// SPDX-License-Identifier: Apache-2.0
#include "cache/slab_source.h"

#include <fcntl.h>
#include <fmt/format.h>
#include <sys/mman.h>
#include <sys/resource.h>
#include <unistd.h>

#include <algorithm>
#include <array>
#include <cerrno>
#include <system_error>

#include "carousel/error.h"

namespace carousel {
namespace {

constexpr std::size_t kGigantic = static_cast<std::size_t>(-1) / 4;

std::string Reason(int error) { return std::generic_category().message(error); }

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

// Where a file system cannot set space aside, by writing; without the signal that a limit on file
// sizes would send. 0, or the error's number: then some of the space may have been taken.
int TakeDiskSpace(int file, std::size_t offset, std::size_t bytes) {
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

}  // namespace

std::byte* HeapSlabs::Take(std::size_t bytes) {
  slabs_.reserve(slabs_.size() + 1);
  return slabs_.emplace_back(bytes).data();
}

void HeapSlabs::Free(const std::byte* slab) noexcept {
  std::erase_if(slabs_, [slab](const auto& each) { return each.data() == slab; });
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
  maps_.reserve(maps_.size() + 1);  // so that nothing throws once space is taken
  const auto page = static_cast<std::size_t>(sysconf(_SC_PAGESIZE));
  int error = ENOSPC;
  void* address = MAP_FAILED;
  if (bytes < kGigantic) {
    bytes = (bytes + page - 1) / page * page;
    error = TakeDiskSpace(file_, size_, bytes);
    if (error == 0) {
      address = mmap(nullptr, bytes, PROT_READ | PROT_WRITE, MAP_SHARED, file_,
                     static_cast<off_t>(size_));
      if (address == MAP_FAILED) error = errno;
    }
  }
  if (error != 0) {
    Shrink();
    throw Error(
        ErrorCode::kOutOfMemory, "recall_store",
        fmt::format("{} cannot grow from {} bytes by {}: {}", path_, size_, bytes, Reason(error)));
  }
  maps_.emplace_back(address, bytes);
  size_ += bytes;
  return static_cast<std::byte*>(address);
}

void FileSlabs::GiveBack() noexcept {
  const auto [address, bytes] = maps_.back();
  maps_.pop_back();
  munmap(address, bytes);
  size_ -= bytes;
  Shrink();
}

// To what is mapped. Where it fails, the next slab lies in the space that is left over.
void FileSlabs::Shrink() const noexcept {
  [[maybe_unused]] const int error = ftruncate(file_, static_cast<off_t>(size_));
}

}  // namespace carousel
