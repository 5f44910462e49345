// SPDX-License-Identifier: Apache-2.0
// A fuzz target's bytes, taken apart into numbers.
#pragma once

#include <algorithm>
#include <bit>
#include <cstdint>
#include <cstring>

namespace carousel {

// Takes values off the front of the input; zeros after its end.
class FuzzInput {
 public:
  FuzzInput(const std::uint8_t* data, std::size_t size) : data_(data), size_(size) {}

  bool empty() const { return size_ == 0; }

  std::uint64_t Bits(std::size_t bytes) {
    std::uint64_t bits = 0;
    const std::size_t taken = std::min(bytes, size_);
    if (taken > 0) std::memcpy(&bits, data_, taken);
    data_ += taken;
    size_ -= taken;
    return bits;
  }

  // In [0, end).
  std::int64_t Below(std::int64_t end) {
    return static_cast<std::int64_t>(Bits(2) % static_cast<std::uint64_t>(end));
  }

  // Any number, and often a plausible one: the first byte says how the rest is read.
  std::int64_t Integer() {
    const std::uint64_t kind = Bits(1);
    if (kind < 128) return static_cast<std::int64_t>(kind) * 8;
    if (kind < 192) return static_cast<std::int64_t>(Bits(2)) - 1000;
    return std::bit_cast<std::int64_t>(Bits(8));
  }

  double Real() {
    const std::uint64_t kind = Bits(1);
    return kind < 128 ? static_cast<double>(kind) / 64.0 : std::bit_cast<double>(Bits(8));
  }

  template <typename Enum>
  Enum Choice(int values) {
    return static_cast<Enum>(Bits(1) % static_cast<std::uint64_t>(values));
  }

 private:
  const std::uint8_t* data_;
  std::size_t size_;
};

}  // namespace carousel
