// SPDX-License-Identifier: Apache-2.0
// The file that a batch's lines are written to, so that a batch which was killed goes on where it
// was: what stands in the file stays, but for half a line at its end.
#pragma once

#include <cstdint>
#include <map>
#include <nlohmann/json_fwd.hpp>
#include <optional>
#include <string>

namespace carousel {

// Errors are carousel::Error (kIo, field "out") and name the file.
class BatchOutput {
 public:
  // `path` "-" is `stdout_fd`, which is not owned and begins empty. Takes half a line at a file's
  // end away, and ends one that lacks its end alone. Throws as well for a file that holds something
  // else than a batch's lines, which stays as it is, and for one that another batch is writing to.
  BatchOutput(const std::string& path, int stdout_fd);
  ~BatchOutput();
  BatchOutput(const BatchOutput&) = delete;
  BatchOutput& operator=(const BatchOutput&) = delete;

  // Whether a line of this name stood in the file; each of them is taken once. nullopt: a request
  // that has none.
  bool TakeFound(const std::optional<std::string>& custom_id);
  // The whole line, or nothing and an error.
  void Write(const nlohmann::ordered_json& line);
  // Reports what a file system says only now. No Write after it.
  void Close();

 private:
  void Lock();
  void ReadFound();
  [[noreturn]] void RefuseLine(std::int64_t number) const;
  [[noreturn]] void Fail(int error) const;

  std::string name_;
  int fd_ = -1;
  bool owned_ = false;
  std::map<std::optional<std::string>, std::int64_t> found_;
};

}  // namespace carousel
