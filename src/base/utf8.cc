// SPDX-License-Identifier: Apache-2.0
#include "base/utf8.h"

#include <algorithm>
#include <cstdint>

#include "base/check.h"

namespace carousel {
namespace {

// What a first byte asks for. The second byte's range is what excludes overlong forms, surrogates
// and code points past U+10FFFF; every later byte is 80..BF.
struct LeadByte {
  std::size_t bytes = 0;  // 0: cannot start a character
  std::uint8_t second_min = 0x80;
  std::uint8_t second_max = 0xBF;
};

LeadByte Classify(std::uint8_t byte) {
  if (byte < 0x80) return {1};
  if (byte < 0xC2) return {0};
  if (byte < 0xE0) return {2};
  if (byte == 0xE0) return {3, 0xA0, 0xBF};
  if (byte == 0xED) return {3, 0x80, 0x9F};
  if (byte < 0xF0) return {3};
  if (byte == 0xF0) return {4, 0x90, 0xBF};
  if (byte < 0xF4) return {4};
  if (byte == 0xF4) return {4, 0x80, 0x8F};
  return {0};
}

}  // namespace

Utf8Unit FirstUtf8Unit(std::string_view text) {
  CAROUSEL_CHECK(!text.empty());
  const auto first = static_cast<std::uint8_t>(text[0]);
  const LeadByte lead = Classify(first);
  if (lead.bytes == 0) return {Utf8Unit::Kind::kInvalid, 1, 0};
  if (lead.bytes == 1) return {Utf8Unit::Kind::kCharacter, 1, first};
  char32_t code_point = first & (0x7FU >> lead.bytes);
  for (std::size_t i = 1; i < lead.bytes; ++i) {
    if (i == text.size()) return {Utf8Unit::Kind::kIncomplete, i, 0};
    const auto byte = static_cast<std::uint8_t>(text[i]);
    const std::uint8_t low = i == 1 ? lead.second_min : std::uint8_t{0x80};
    const std::uint8_t high = i == 1 ? lead.second_max : std::uint8_t{0xBF};
    if (byte < low || byte > high) return {Utf8Unit::Kind::kInvalid, i, 0};
    code_point = (code_point << 6U) | (byte & 0x3FU);
  }
  return {Utf8Unit::Kind::kCharacter, lead.bytes, code_point};
}

std::optional<std::size_t> FindInvalidUtf8(std::string_view text) {
  std::size_t offset = 0;
  while (offset < text.size()) {
    const Utf8Unit unit = FirstUtf8Unit(text.substr(offset));
    if (unit.kind != Utf8Unit::Kind::kCharacter) return offset;
    offset += unit.bytes;
  }
  return std::nullopt;
}

std::string ReplaceInvalidUtf8(std::string_view text) {
  std::string out;
  out.reserve(text.size());
  while (!text.empty()) {
    const Utf8Unit unit = FirstUtf8Unit(text);
    out += unit.kind == Utf8Unit::Kind::kCharacter ? text.substr(0, unit.bytes)
                                                   : kReplacementCharacter;
    text.remove_prefix(unit.bytes);
  }
  return out;
}

std::size_t IncompleteTailBytes(std::string_view text) {
  // An incomplete unit reaches the end, so at most its three bytes have to be looked at. The
  // longest candidate wins: a shorter one inside it would start with a continuation byte, which is
  // never a lead.
  for (std::size_t bytes = std::min<std::size_t>(3, text.size()); bytes > 0; --bytes) {
    const Utf8Unit unit = FirstUtf8Unit(text.substr(text.size() - bytes));
    if (unit.kind == Utf8Unit::Kind::kIncomplete && unit.bytes == bytes) return bytes;
  }
  return 0;
}

bool IsSpace(char32_t code_point) {
  return (code_point >= 0x09 && code_point <= 0x0D) || code_point == 0x20 || code_point == 0x85 ||
         code_point == 0xA0 || code_point == 0x1680 ||
         (code_point >= 0x2000 && code_point <= 0x200A) || code_point == 0x2028 ||
         code_point == 0x2029 || code_point == 0x202F || code_point == 0x205F ||
         code_point == 0x3000;
}

}  // namespace carousel
