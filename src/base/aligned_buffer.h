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

constexpr std::size_t RoundUpToAlignment(std::size_t bytes) {
  return (bytes + kAlignment - 1) / kAlignment * kAlignment;
}

// Owns `count` uninitialised elements of a trivial type. Throws std::bad_alloc.
template <typename T>
class AlignedBuffer {
 public:
  AlignedBuffer() = default;
  explicit AlignedBuffer(std::size_t count) : count_(count) {
    if (count == 0) return;
    if (count > static_cast<std::size_t>(-1) / sizeof(T) / 2) throw std::bad_alloc();
    data_ = static_cast<T*>(std::aligned_alloc(kAlignment, RoundUpToAlignment(count * sizeof(T))));
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
