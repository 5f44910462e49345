// SPDX-License-Identifier: Apache-2.0
#include "cache/moved_blocks.h"

#include <fcntl.h>
#include <fmt/format.h>
#include <unistd.h>

#include <cerrno>
#include <cstdlib>
#include <cstring>
#include <new>
#include <utility>

#include "base/check.h"
#include "cache/disk_space.h"
#include "carousel/error.h"

namespace carousel {
namespace {

// -1: there is none.
int OpenScratch(const std::string& directory) {
  const int file = open(directory.c_str(), O_TMPFILE | O_RDWR | O_CLOEXEC, S_IRUSR | S_IWUSR);
  // Some file systems know no files without names.
  if (file >= 0 || (errno != EOPNOTSUPP && errno != EISDIR)) return file;
  std::string path = directory + "/carousel-swap-XXXXXX";
  const int named = mkostemp(path.data(), O_CLOEXEC);
  if (named >= 0) unlink(path.c_str());
  return named;
}

}  // namespace

std::unique_ptr<ScratchFile> ScratchFile::Make(const std::string& directory) noexcept {
  int file = -1;
  try {
    file = OpenScratch(directory);
    if (file >= 0) return std::unique_ptr<ScratchFile>(new ScratchFile(file));
  } catch (const std::bad_alloc&) {
    if (file >= 0) close(file);
    errno = ENOMEM;
  }
  return nullptr;
}

ScratchFile::~ScratchFile() { close(file_); }

bool ScratchFile::Reserve(std::size_t bytes) noexcept {
  const int error = TakeDiskSpace(file_, 0, bytes);
  errno = error;
  return error == 0;
}

bool ScratchFile::Write(std::size_t offset, std::span<const std::byte> bytes) noexcept {
  while (!bytes.empty()) {
    const ssize_t count = pwrite(file_, bytes.data(), bytes.size(), static_cast<off_t>(offset));
    if (count == 0) errno = ENOSPC;
    if (count == 0 || (count < 0 && errno != EINTR)) return false;
    if (count < 0) continue;
    offset += static_cast<std::size_t>(count);
    bytes = bytes.subspan(static_cast<std::size_t>(count));
  }
  return true;
}

bool ScratchFile::Read(std::size_t offset, std::span<std::byte> bytes) noexcept {
  while (!bytes.empty()) {
    const ssize_t count = pread(file_, bytes.data(), bytes.size(), static_cast<off_t>(offset));
    if (count == 0) errno = EIO;
    if (count == 0 || (count < 0 && errno != EINTR)) return false;
    if (count < 0) continue;
    offset += static_cast<std::size_t>(count);
    bytes = bytes.subspan(static_cast<std::size_t>(count));
  }
  return true;
}

MovedBlocks MovedBlocks::InFile(const std::string& directory, std::int64_t bytes) {
  CAROUSEL_CHECK_GT(bytes, 0);
  MovedBlocks blocks;
  std::unique_ptr<ScratchFile> file = ScratchFile::Make(directory);
  if (file == nullptr || !file->Reserve(static_cast<std::size_t>(bytes))) return blocks;
  blocks.file_ = std::move(file);
  blocks.bytes_ = static_cast<std::size_t>(bytes);
  return blocks;
}

MovedBlocks MovedBlocks::InMemory(std::int64_t bytes) {
  CAROUSEL_CHECK_GT(bytes, 0);
  MovedBlocks blocks;
  blocks.memory_ = AlignedBuffer<std::byte>(static_cast<std::size_t>(bytes));
  blocks.bytes_ = static_cast<std::size_t>(bytes);
  return blocks;
}

bool MovedBlocks::Append(std::span<const std::byte> bytes) noexcept {
  CAROUSEL_CHECK_LE(written_ + bytes.size(), bytes_);
  if (file_ != nullptr) {
    if (!file_->Write(written_, bytes)) return false;
  } else {
    std::memcpy(memory_.data() + written_, bytes.data(), bytes.size());
  }
  written_ += bytes.size();
  return true;
}

void MovedBlocks::Read(std::size_t offset, std::span<std::byte> to) const {
  CAROUSEL_CHECK_LE(offset + to.size(), written_);
  if (file_ == nullptr) {
    std::memcpy(to.data(), memory_.data() + offset, to.size());
  } else if (!file_->Read(offset, to)) {
    throw Error(ErrorCode::kIo, "swap_directory",
                fmt::format("{} bytes that were moved out cannot be read again: {}; reset the "
                            "sequence, and use another folder, or none",
                            bytes_, Reason(errno)));
  }
}

void CheckSwapDirectory(const std::string& directory) {
  if (ScratchFile::Make(directory) != nullptr) return;
  throw Error(ErrorCode::kInvalidArgument, "swap_directory",
              fmt::format("no file can be made in {}: {}; name a folder that you may write to",
                          directory, Reason(errno)));
}

}  // namespace carousel
