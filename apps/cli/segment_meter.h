// SPDX-License-Identifier: Apache-2.0
// How well a stream is predicted, in equal segments and over all, in constant memory.
#pragma once

#include <cstdint>
#include <optional>
#include <span>
#include <vector>

namespace carousel {

// The tokens [tokens_begin, tokens_end) of a stream.
struct Segment {
  std::int64_t tokens_begin = 0;
  std::int64_t tokens_end = 0;
  std::int64_t predicted_tokens = 0;  // all but the stream's first token
  double nll_sum = 0.0;               // nats
  double seconds = 0.0;

  std::int64_t tokens() const { return tokens_end - tokens_begin; }
  // Mean in nats per predicted token; NaN when there is none.
  double nll() const;
  double perplexity() const;
  double tokens_per_second() const;  // 0 when no time has passed
};

class SegmentMeter {
 public:
  explicit SegmentMeter(std::int64_t segment_tokens) : segment_tokens_(segment_tokens) {}

  // A step read `tokens` tokens in `seconds`; `nll` belongs to the last of them, one each. Returns
  // the segments that are complete now. A step's time is spread evenly over its tokens.
  std::vector<Segment> AddStep(std::int64_t tokens, std::span<const double> nll, double seconds);
  // The segment that has begun; nullopt when the stream ends with a complete one.
  std::optional<Segment> unfinished() const;
  const Segment& total() const { return total_; }

 private:
  std::int64_t segment_tokens_;
  Segment current_;
  Segment total_;
};

}  // namespace carousel
