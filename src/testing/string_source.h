// SPDX-License-Identifier: Apache-2.0
// Sources of bytes for tests: a text, in reads of any size, with or without an error behind it.
#pragma once

#include <gtest/gtest.h>

#include <algorithm>
#include <cstddef>
#include <cstring>
#include <optional>
#include <span>
#include <string>
#include <utility>
#include <vector>

#include "carousel/error.h"
#include "text/byte_source.h"

namespace carousel {

// Hands a text on in reads of the sizes given, again and again; 0 stands for being woken. No sizes:
// as much as there is room for.
class StringSource : public ByteSource {
 public:
  StringSource(std::string text, std::vector<std::size_t> reads)
      : text_(std::move(text)), reads_(std::move(reads)) {}

  std::optional<std::size_t> Read(std::span<char> buffer) override {
    EXPECT_FALSE(buffer.empty());
    std::size_t wanted = buffer.size();
    if (!reads_.empty()) {
      wanted = reads_[next_++ % reads_.size()];
      if (wanted == 0) return std::nullopt;
    }
    const std::size_t bytes = std::min({wanted, buffer.size(), text_.size() - offset_});
    std::memcpy(buffer.data(), text_.data() + offset_, bytes);
    offset_ += bytes;
    return bytes;
  }

 private:
  std::string text_;
  std::vector<std::size_t> reads_;
  std::size_t next_ = 0;
  std::size_t offset_ = 0;
};

// Fails where the text ends.
class FailingSource : public StringSource {
 public:
  using StringSource::StringSource;
  std::optional<std::size_t> Read(std::span<char> buffer) override {
    const auto count = StringSource::Read(buffer);
    if (count == std::size_t{0}) throw Error(ErrorCode::kIo, "text", "cannot read it");
    return count;
  }
};

}  // namespace carousel
