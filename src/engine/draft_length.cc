// SPDX-License-Identifier: Apache-2.0
#include "engine/draft_length.h"

#include <algorithm>

namespace carousel {

DraftLength::DraftLength(std::int64_t most) : most_(most), length_(std::min(most, kFirst)) {}

void DraftLength::NoteDraft(std::int64_t drafted, std::int64_t accepted) {
  if (accepted == 0) {
    pause_ = std::clamp<std::int64_t>(2 * pause_, 1, kLongestPause);
    pause_left_ = pause_;
    length_ = std::min(most_, kFirst);
    return;
  }
  if (accepted < drafted) {
    length_ = std::min(most_, accepted + 1);
    return;
  }
  pause_ = 0;
  length_ = std::min(most_, 2 * length_);
}

}  // namespace carousel
