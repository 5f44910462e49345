// SPDX-License-Identifier: Apache-2.0
#include "base/aligned_buffer.h"

#if __has_include(<sys/mman.h>)
#include <sys/mman.h>
#endif

namespace carousel {

void* AllocateAligned(std::size_t bytes) {
  const std::size_t pages = (bytes + kHugePageBytes - 1) / kHugePageBytes * kHugePageBytes;
  // What is less than a page would stay on small ones; what fills pages badly would waste memory.
  if (bytes < kHugePageBytes - kHugePageBytes / 8 || pages - bytes > bytes / 8)
    return std::aligned_alloc(kAlignment, RoundUpToAlignment(bytes));
  void* data = std::aligned_alloc(kHugePageBytes, pages);
#ifdef MADV_HUGEPAGE
  if (data != nullptr) madvise(data, pages, MADV_HUGEPAGE);  // a wish: it may fail
#endif
  return data;
}

}  // namespace carousel
