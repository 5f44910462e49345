// SPDX-License-Identifier: Apache-2.0
// How long a draft is worth testing, by how right those before it were. A pass of several rows
// costs more than one of one row, so drafts that are wrong pause, longer each time, and one that
// is right ends the pause.
#pragma once

#include <cstdint>

namespace carousel {

class DraftLength {
 public:
  // most > 0: tokens of a draft.
  explicit DraftLength(std::int64_t most);

  // How many tokens the next draft may have; 0 in a pause.
  std::int64_t Next() const { return pause_left_ > 0 ? 0 : length_; }
  // A pass has tested a draft of `drafted` > 0 tokens, and the first `accepted` were right.
  void NoteDraft(std::int64_t drafted, std::int64_t accepted);
  // A pass had no draft.
  void NoteNone() {
    if (pause_left_ > 0) --pause_left_;
  }

 private:
  static constexpr std::int64_t kFirst = 4;
  static constexpr std::int64_t kLongestPause = 64;  // passes

  std::int64_t most_;
  std::int64_t length_;
  std::int64_t pause_ = 0;  // the last one
  std::int64_t pause_left_ = 0;
};

}  // namespace carousel
