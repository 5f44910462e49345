// SPDX-License-Identifier: Apache-2.0
#include "cli/recall_notice.h"

#include <fmt/format.h>

#include "cli/error_text.h"

namespace carousel {

std::string RecallNotice::Once(const Engine& engine) {
  if (is_said_) return "";
  const EngineMetrics metrics = engine.metrics();
  is_said_ = metrics.recall_refused_growths > 0;
  if (!is_said_) return "";
  return fmt::format(
      "carousel: note: recall: {}; free some for more, until then the oldest of what was forgotten "
      "is dropped\n",
      OneLine(metrics.recall_limited_by));
}

}  // namespace carousel
