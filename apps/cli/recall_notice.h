// SPDX-License-Identifier: Apache-2.0
// Says once that what is forgotten can be kept no longer, and once that the stream has left what
// the model was trained for.
#pragma once

#include <string>

#include "carousel/single_sequence_engine.h"

namespace carousel {

class RecallNotice {
 public:
  // A line for standard error the first time that the second tier could not grow, and the first
  // time that a token was read beyond the trained window; else empty. For any moment between two
  // steps.
  std::string Once(const SingleSequenceEngine& engine) {
    return Once(engine.metrics(), engine.model().spec());
  }
  std::string Once(const SequenceMetrics& metrics, const ModelSpec& model);

 private:
  bool said_growth_ = false;
  bool said_window_ = false;
};

}  // namespace carousel
