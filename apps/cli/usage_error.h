// SPDX-License-Identifier: Apache-2.0
#pragma once

#include <stdexcept>

namespace carousel {

// A command line that cannot be run. One line of text, without the program's name; exit status 2.
class UsageError : public std::runtime_error {
 public:
  using std::runtime_error::runtime_error;
};

}  // namespace carousel
