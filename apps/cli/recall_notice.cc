// SPDX-License-Identifier: Apache-2.0
#include "cli/recall_notice.h"

#include <fmt/format.h>

#include "cli/error_text.h"

namespace carousel {

std::string RecallNotice::Once(const SequenceMetrics& metrics, const ModelSpec& model) {
  std::string notes;
  if (!said_growth_ && metrics.recall_refused_growths > 0) {
    said_growth_ = true;
    notes += fmt::format(
        "carousel: note: recall: {}; free some for more, until then the oldest of what was "
        "forgotten is dropped\n",
        OneLine(metrics.recall_limited_by));
  }
  if (!said_window_ && metrics.tokens_past_window > 0) {
    said_window_ = true;
    notes += fmt::format(
        "carousel: note: the stream has left the window of {} positions that the model was trained "
        "on, and nothing brings it back: what it says from here on means little; let it evict with "
        "compact positions\n",
        model.trained_window);
  }
  return notes;
}

}  // namespace carousel
