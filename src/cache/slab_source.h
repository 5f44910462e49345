// SPDX-License-Identifier: Apache-2.0
// Where a pool's slabs come from: the heap, or a file mapped into memory.
#pragma once

#include <cstddef>
#include <string>
#include <utility>
#include <vector>

#include "base/aligned_buffer.h"

namespace carousel {

class SlabSource {
 public:
  virtual ~SlabSource() = default;
  // Memory of `bytes` bytes, aligned to kAlignment, with undefined content, that lasts as long as
  // the source. Throws std::bad_alloc, or carousel::Error when a file cannot grow; nothing is then
  // taken.
  virtual std::byte* Take(std::size_t bytes) = 0;
  // Undoes the last Take. Once after each.
  virtual void GiveBack() noexcept = 0;
};

class HeapSlabs final : public SlabSource {
 public:
  std::byte* Take(std::size_t bytes) override;
  void GiveBack() noexcept override { slabs_.pop_back(); }
  // Gives any slab back.
  void Free(const std::byte* slab) noexcept;

 private:
  std::vector<AlignedBuffer<std::byte>> slabs_;
};

// A scratch file. It is made anew and loses its name at once, so that its space comes back whatever
// ends the process. The disk's space is taken before memory is mapped to it: a full disk is an
// error here and not a signal later. Space that was taken for a slab that did not come about goes
// back to the disk.
class FileSlabs final : public SlabSource {
 public:
  // Throws carousel::Error (kInvalidArgument, field "recall_store") when there is a file at `path`
  // or none can be made.
  explicit FileSlabs(const std::string& path);
  ~FileSlabs() override;
  FileSlabs(const FileSlabs&) = delete;
  FileSlabs& operator=(const FileSlabs&) = delete;

  // Also throws carousel::Error (kOutOfMemory, "recall_store") when the disk, a quota or the
  // address space is full.
  std::byte* Take(std::size_t bytes) override;
  void GiveBack() noexcept override;

  std::size_t size() const { return size_; }  // of the file, in bytes

 private:
  void Shrink() const noexcept;

  std::string path_;
  int file_ = -1;
  std::size_t size_ = 0;
  std::vector<std::pair<void*, std::size_t>> maps_;
};

}  // namespace carousel
