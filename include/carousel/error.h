// SPDX-License-Identifier: Apache-2.0
// What a user, a file or a model brought and cannot be used. Bugs are not errors: they CHECK.
#pragma once

#include <stdexcept>
#include <string>
#include <string_view>

namespace carousel {

enum class ErrorCode {
  kInvalidArgument,  // a setting, a flag, a request
  kModel,            // a file that is missing, damaged or of a kind that is not supported
  kIo,               // reading or writing failed
  kOutOfMemory,      // the cache's limit or the machine's memory
  kBusy,             // as many requests as may run and wait already do
};

// One line of text that names the field, the value, the limit and the mend.
class Error : public std::runtime_error {
 public:
  Error(ErrorCode code, std::string_view field, std::string_view problem)
      : std::runtime_error(std::string(field) + ": " + std::string(problem)),
        code_(code),
        field_(field),
        problem_(problem) {}

  ErrorCode code() const { return code_; }
  // The setting at fault, spelled as in config.h ("max_cache_size"); programs map it to their flag.
  const std::string& field() const { return field_; }
  // The message without the field.
  const std::string& problem() const { return problem_; }

 private:
  ErrorCode code_;
  std::string field_;
  std::string problem_;
};

}  // namespace carousel
