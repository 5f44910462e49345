// SPDX-License-Identifier: Apache-2.0
#include "cli/segment_meter.h"

#include <cmath>
#include <limits>

#include "base/check.h"

namespace carousel {

double Segment::nll() const {
  if (predicted_tokens == 0) return std::numeric_limits<double>::quiet_NaN();
  return nll_sum / static_cast<double>(predicted_tokens);
}

double Segment::perplexity() const { return std::exp(nll()); }

double Segment::tokens_per_second() const {
  return seconds > 0 ? static_cast<double>(tokens()) / seconds : 0.0;
}

std::vector<Segment> SegmentMeter::AddStep(std::int64_t tokens, std::span<const double> nll,
                                           double seconds) {
  const auto scored = static_cast<std::int64_t>(nll.size());
  CAROUSEL_CHECK_LE(scored, tokens);
  std::vector<Segment> complete;
  for (std::int64_t i = 0; i < tokens; ++i) {
    const std::int64_t index = i - (tokens - scored);  // into nll
    for (Segment* segment : {&current_, &total_}) {
      ++segment->tokens_end;
      segment->seconds += seconds / static_cast<double>(tokens);
      if (index < 0) continue;
      segment->nll_sum += nll[static_cast<std::size_t>(index)];
      ++segment->predicted_tokens;
    }
    if (current_.tokens() < segment_tokens_) continue;
    complete.push_back(current_);
    current_ = {.tokens_begin = current_.tokens_end, .tokens_end = current_.tokens_end};
  }
  return complete;
}

std::optional<Segment> SegmentMeter::unfinished() const {
  if (current_.tokens() == 0) return std::nullopt;
  return current_;
}

}  // namespace carousel
