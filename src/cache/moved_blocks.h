// SPDX-License-Identifier: Apache-2.0
// What a sequence's blocks hold while they are out of the pools: bytes, written once from the first
// to the last and read back in the same order. In a file of a folder for that, or in memory where
// there is no folder or its disk cannot take them.
#pragma once

#include <cstddef>
#include <cstdint>
#include <memory>
#include <span>
#include <string>

#include "base/aligned_buffer.h"

namespace carousel {

// A file without a name, so that its space comes back whatever ends the process.
class ScratchFile {
 public:
  // null: none can be made in `directory`; errno says why.
  static std::unique_ptr<ScratchFile> Make(const std::string& directory) noexcept;
  ~ScratchFile();
  ScratchFile(const ScratchFile&) = delete;
  ScratchFile& operator=(const ScratchFile&) = delete;

  // Takes disk space for so many bytes. False: there is none, and errno says why.
  bool Reserve(std::size_t bytes) noexcept;
  // All of it, or false, with errno set.
  bool Write(std::size_t offset, std::span<const std::byte> bytes) noexcept;
  bool Read(std::size_t offset, std::span<std::byte> bytes) noexcept;

 private:
  explicit ScratchFile(int file) : file_(file) {}

  int file_;
};

class MovedBlocks {
 public:
  // Nothing.
  MovedBlocks() = default;
  // Room for `bytes`, > 0, in a file in `directory`. The result is empty where there is none.
  static MovedBlocks InFile(const std::string& directory, std::int64_t bytes);
  // The same in memory. Throws std::bad_alloc.
  static MovedBlocks InMemory(std::int64_t bytes);

  bool empty() const { return bytes_ == 0; }
  std::int64_t bytes() const { return static_cast<std::int64_t>(bytes_); }
  bool is_in_file() const { return file_ != nullptr; }

  // Appends. False: the disk does not take it.
  bool Append(std::span<const std::byte> bytes) noexcept;
  // The bytes from `offset` on. Throws carousel::Error (kIo, "swap_directory") when the disk does
  // not give them.
  void Read(std::size_t offset, std::span<std::byte> to) const;

 private:
  std::unique_ptr<ScratchFile> file_;  // null: in memory
  AlignedBuffer<std::byte> memory_;
  std::size_t bytes_ = 0;
  std::size_t written_ = 0;
};

// Throws carousel::Error (kInvalidArgument, "swap_directory") where no file can be made there.
void CheckSwapDirectory(const std::string& directory);

}  // namespace carousel
