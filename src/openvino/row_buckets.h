// SPDX-License-Identifier: Apache-2.0
// The numbers of rows that the runtime is given.
#pragma once

#include <cstddef>

namespace carousel {

// The runtime keeps memory for every number of rows that it has run, for good, and takes time to
// prepare for a new one. So what has `rows` rows is padded to the least of a few numbers that is
// not smaller: 0 to 6, then even ones to 32, multiples of 4 to 80, of 8 to 256, of 32 to 512, and
// above that at most an eighth more (docs/decisions/0018-row-buckets.md).
std::size_t PaddedRows(std::size_t rows);

// The same of at least `least` rows, but for none at all.
std::size_t PaddedRows(std::size_t rows, std::size_t least);

}  // namespace carousel
