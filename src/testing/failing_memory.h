// SPDX-License-Identifier: Apache-2.0
// Counts and refuses memory. It replaces operator new for the whole program, so one source file of
// a program of its own includes it, which is linked with --wrap=aligned_alloc.
#pragma once

#include <atomic>
#include <cstddef>
#include <cstdint>
#include <cstdlib>
#include <new>

namespace carousel::testing {

inline constexpr std::int64_t kNoEnd = 1'000'000'000;

inline std::atomic<std::int64_t> allocations = 0;        // of both kinds
inline std::atomic<std::int64_t> objects_left = kNoEnd;  // that operator new may have
inline std::atomic<std::int64_t> buffers_left = kNoEnd;  // that AlignedBuffer may have

}  // namespace carousel::testing

// The linker puts this in the place of the library's calls of aligned_alloc.
extern "C" void* __real_aligned_alloc(std::size_t alignment, std::size_t bytes);
extern "C" void* __wrap_aligned_alloc(std::size_t alignment, std::size_t bytes) {
  ++carousel::testing::allocations;
  if (carousel::testing::buffers_left.fetch_sub(1) <= 0) return nullptr;
  return __real_aligned_alloc(alignment, bytes);
}

// Not inlined, or GCC takes the pair for a mismatch.
[[gnu::noinline]] void* operator new(std::size_t bytes) {
  ++carousel::testing::allocations;
  if (carousel::testing::objects_left.fetch_sub(1) <= 0) throw std::bad_alloc();
  void* memory = std::malloc(bytes);
  if (memory == nullptr) throw std::bad_alloc();
  return memory;
}
[[gnu::noinline]] void* operator new(std::size_t bytes, const std::nothrow_t&) noexcept {
  ++carousel::testing::allocations;
  if (carousel::testing::objects_left.fetch_sub(1) <= 0) return nullptr;
  return std::malloc(bytes);
}
[[gnu::noinline]] void operator delete(void* memory) noexcept { std::free(memory); }
[[gnu::noinline]] void operator delete(void* memory, std::size_t) noexcept { std::free(memory); }
