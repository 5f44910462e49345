// SPDX-License-Identifier: Apache-2.0
#include "cache/slab_source.h"

#include <fcntl.h>
#include <fmt/format.h>
#include <sys/mman.h>
#include <unistd.h>

#include <algorithm>
#include <cerrno>

#include "cache/disk_space.h"
#include "carousel/error.h"

namespace carousel {
namespace {

constexpr std::size_t kGigantic = static_cast<std::size_t>(-1) / 4;

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
