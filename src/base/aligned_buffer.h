// SPDX-License-Identifier: Apache-2.0
// Memory aligned to a cache line and to the widest vector.
#pragma once

#include <cstddef>
#include <cstdlib>
#include <new>
#include <span>
#include <utility>

namespace carousel {

inline constexpr std::size_t kAlignment = 64;
inline constexpr std::size_t kHugePageBytes = std::size_t{2} << 20;

constexpr std::size_t RoundUpToAlignment(std::size_t bytes) {
  return (bytes + kAlignment - 1) / kAlignment * kAlignment;
}

// `bytes` uninitialised bytes aligned to kAlignment, for std::free; nullptr when there are none.
// Much memory lies on huge pages where the system has them: blocks that are read here and there
// otherwise wait for translations of their addresses as long as for themselves.
void* AllocateAligned(std::size_t bytes);

// Owns `count` uninitialised elements of a trivial type. Throws std::bad_alloc.
template <typename T>
class AlignedBuffer {
 public:
  AlignedBuffer() = default;
  explicit AlignedBuffer(std::size_t count) : count_(count) {
    if (count == 0) return;
    if (count > static_cast<std::size_t>(-1) / sizeof(T) / 2) throw std::bad_alloc();
    data_ = static_cast<T*>(AllocateAligned(count * sizeof(T)));
    if (data_ == nullptr) throw std::bad_alloc();
  }
  ~AlignedBuffer() { std::free(data_); }
  AlignedBuffer(AlignedBuffer&& other) noexcept
      : data_(std::exchange(other.data_, nullptr)), count_(std::exchange(other.count_, 0)) {}
  AlignedBuffer& operator=(AlignedBuffer&& other) noexcept {
    std::swap(data_, other.data_);
    std::swap(count_, other.count_);
    return *this;
  }
  AlignedBuffer(const AlignedBuffer&) = delete;
  AlignedBuffer& operator=(const AlignedBuffer&) = delete;

  T* data() { return data_; }
  const T* data() const { return data_; }
  std::size_t size() const { return count_; }
  std::span<T> span() { return {data_, count_}; }

  // Grows to at least `count` elements; what was in it is lost.
  void Reserve(std::size_t count) {
    if (count > count_) *this = AlignedBuffer(count + count / 2);
  }

 private:
  T* data_ = nullptr;
  std::size_t count_ = 0;
};

}  // namespace carousel
