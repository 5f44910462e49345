// SPDX-License-Identifier: Apache-2.0
// A file that is written whole or not at all.
#pragma once

#include <string>
#include <string_view>

namespace carousel {

// Errors are carousel::Error (kIo, field "json") and name the file.
class WholeFile {
 public:
  // `path` "-" is `stdout_fd`, which is not owned. Fails at once where the file could not be
  // written, and leaves nothing behind until Write.
  WholeFile(std::string path, int stdout_fd);

  // Writes beside the file and moves it there when it is whole. What is no regular file is written
  // as it is.
  void Write(std::string_view content) const;

 private:
  void WriteTo(const std::string& path, int flags, std::string_view content) const;
  [[noreturn]] void Fail(int error) const;

  std::string path_;
  int stdout_fd_;
  bool is_plain_ = false;  // a regular file, or none yet
};

}  // namespace carousel
