// SPDX-License-Identifier: Apache-2.0
#include "base/aligned_buffer.h"

#include <gtest/gtest.h>

#include <cstdint>
#include <cstring>

namespace carousel {
namespace {

std::uintptr_t AddressOf(const AlignedBuffer<std::byte>& buffer) {
  return reinterpret_cast<std::uintptr_t>(buffer.data());
}

TEST(AlignedBuffer, HoldsWhatItIsAskedForAtAlignedAddresses) {
  constexpr std::size_t kSizes[] = {1,
                                    63,
                                    64,
                                    1000,
                                    kHugePageBytes - kHugePageBytes / 8 - 1,
                                    kHugePageBytes - 1,
                                    kHugePageBytes,
                                    kHugePageBytes + 1,
                                    10 * kHugePageBytes - 5};
  for (const std::size_t bytes : kSizes) {
    AlignedBuffer<std::byte> buffer(bytes);
    ASSERT_EQ(buffer.size(), bytes);
    EXPECT_EQ(AddressOf(buffer) % kAlignment, 0U);
    std::memset(buffer.data(), 1, bytes);
  }
}

// Only then can the system put it on huge pages.
TEST(AlignedBuffer, WhatFillsHugePagesBeginsWithOne) {
  for (const std::size_t bytes : {kHugePageBytes - 100, kHugePageBytes, 10 * kHugePageBytes - 5})
    EXPECT_EQ(AddressOf(AlignedBuffer<std::byte>(bytes)) % kHugePageBytes, 0U) << bytes;
}

TEST(AlignedBuffer, MoreThanThereIsThrows) {
  EXPECT_THROW(AlignedBuffer<double>(static_cast<std::size_t>(-1) / 4), std::bad_alloc);
  EXPECT_THROW(AlignedBuffer<std::byte>(static_cast<std::size_t>(-1) / 4), std::bad_alloc);
}

}  // namespace
}  // namespace carousel
