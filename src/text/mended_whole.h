// SPDX-License-Identifier: Apache-2.0
// The slow twin of TextMender, for tests: all bytes at once, one unit at a time.
#pragma once

#include <algorithm>
#include <cstdint>
#include <string>
#include <string_view>

#include "base/utf8.h"

namespace carousel {

struct MendedText {
  std::string text;
  std::int64_t replaced = 0;
};

inline MendedText MendedWhole(std::string_view bytes) {
  MendedText mended;
  while (!bytes.empty()) {
    Utf8Unit unit = FirstUtf8Unit(bytes);
    const std::size_t nuls = std::min(bytes.find_first_not_of('\0'), bytes.size());
    if (nuls > 0) unit = {Utf8Unit::Kind::kInvalid, nuls, 0};
    const bool is_text = unit.kind == Utf8Unit::Kind::kCharacter;
    mended.text += is_text ? bytes.substr(0, unit.bytes) : kReplacementCharacter;
    mended.replaced += is_text ? 0 : 1;
    bytes.remove_prefix(unit.bytes);
  }
  return mended;
}

}  // namespace carousel
