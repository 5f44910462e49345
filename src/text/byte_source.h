// SPDX-License-Identifier: Apache-2.0
// Where text comes from: a file, or standard input that may never end.
#pragma once

#include <cstddef>
#include <memory>
#include <optional>
#include <span>
#include <string>

namespace carousel {

class ByteSource {
 public:
  virtual ~ByteSource() = default;
  // Fills the front of `buffer` (not empty) with what is there, waiting for the first byte. 0: the
  // end. nullopt: woken while waiting; the source can be read on. Throws carousel::Error (kIo,
  // field "text").
  virtual std::optional<std::size_t> Read(std::span<char> buffer) = 0;
};

// `path` "-" is standard input. A wait for input ends when `wake_fd` becomes readable (-1: never
// does). Throws carousel::Error (kIo, field "text") when it cannot be opened or is a folder.
std::unique_ptr<ByteSource> OpenByteSource(const std::string& path, int wake_fd);

}  // namespace carousel
