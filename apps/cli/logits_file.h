// SPDX-License-Identifier: Apache-2.0
// Whole next-token distributions in a file, for other programs to compare.
#pragma once

#include <cstdint>
#include <span>
#include <string>

namespace carousel {

// Rows of natural log-probabilities: float32, little-endian, [rows, vocabulary], nothing else.
// Errors are carousel::Error (kIo, field "logits") and name the file.
class LogitsFile {
 public:
  // Fails at once where the file cannot be written. What stood in it is gone, so that a run that
  // fails leaves no rows of another.
  explicit LogitsFile(std::string path);
  ~LogitsFile();
  LogitsFile(const LogitsFile&) = delete;
  LogitsFile& operator=(const LogitsFile&) = delete;

  // Normalises `logits` [vocabulary] and writes them as the next row. When it cannot be written
  // whole (a full disk), what is there of it is taken back from a regular file.
  void Append(std::span<const float> logits);
  std::int64_t rows() const { return rows_; }
  // Reports what a file system says only now. No Append after it.
  void Close();

 private:
  [[noreturn]] void Fail(int error) const;

  std::string path_;
  int fd_;
  std::int64_t rows_ = 0;
};

}  // namespace carousel
