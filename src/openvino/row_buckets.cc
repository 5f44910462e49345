// SPDX-License-Identifier: Apache-2.0
#include "openvino/row_buckets.h"

#include <algorithm>
#include <array>

namespace carousel {
namespace {

// Up to `last` rows in multiples of `step`. Chat messages have the finest steps, since there a row
// more counts most; steps of up to 6 rows are another kernel's, and each is kept as it is.
struct Span {
  std::size_t last;
  std::size_t step;
};
constexpr std::array<Span, 5> kSpans = {{{6, 1}, {32, 2}, {80, 4}, {256, 8}, {512, 32}}};

}  // namespace

std::size_t PaddedRows(std::size_t rows) {
  const auto up = [rows](std::size_t step) { return (rows + step - 1) / step * step; };
  for (const Span& span : kSpans) {
    if (rows <= span.last) return up(span.step);
  }
  // 512 to 1,024 rows in multiples of 64, and each doubling in twice as large ones.
  std::size_t step = 64;
  for (std::size_t last = 1024; rows > last; last *= 2) step *= 2;
  return up(step);
}

std::size_t PaddedRows(std::size_t rows, std::size_t least) {
  return rows == 0 ? 0 : PaddedRows(std::max(rows, least));
}

}  // namespace carousel
