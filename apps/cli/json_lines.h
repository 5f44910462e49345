// SPDX-License-Identifier: Apache-2.0
// A file of JSON objects, one per line, in which there are never half lines.
#pragma once

#include <nlohmann/json_fwd.hpp>
#include <string>

namespace carousel {

// An object as such a line, its end included. Text that is no UTF-8 cannot come this far, but a
// replacement character is better than an exception.
std::string LineOf(const nlohmann::ordered_json& object);

// Every line is out when Write returns. Errors are carousel::Error (kIo, field "json") and name the
// file.
class JsonLines {
 public:
  // `path` "-" is `stdout_fd`, which is not owned. Fails at once where the file cannot be written.
  // What stood in the file is replaced by the first line: a run that fails before it leaves the
  // file as it was, and where there was none, none.
  JsonLines(const std::string& path, int stdout_fd);
  ~JsonLines();
  JsonLines(const JsonLines&) = delete;
  JsonLines& operator=(const JsonLines&) = delete;

  // Removes what stood in the file now, for a run whose lines belong to something else that is made
  // anew.
  void Begin();
  // When a line cannot be written whole (a full disk), what is there of it is taken back from a
  // regular file.
  void Write(const nlohmann::ordered_json& object);
  // Reports what a file system says only now. No Write after it.
  void Close();

 private:
  [[noreturn]] void Fail(int error) const;

  std::string name_;
  int fd_ = -1;
  bool owned_ = false;
  bool is_new_ = false;     // there was no such file
  bool has_begun_ = false;  // nothing is left of what stood in it
};

}  // namespace carousel
