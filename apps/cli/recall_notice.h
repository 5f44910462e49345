// SPDX-License-Identifier: Apache-2.0
// Says once that what is forgotten can be kept no longer.
#pragma once

#include <string>

#include "carousel/engine.h"

namespace carousel {

class RecallNotice {
 public:
  // A line for standard error, the first time that the second tier could not grow; else empty. For
  // any moment between two steps.
  std::string Once(const Engine& engine);

 private:
  bool is_said_ = false;
};

}  // namespace carousel
