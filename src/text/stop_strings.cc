// SPDX-License-Identifier: Apache-2.0
#include "text/stop_strings.h"

#include <fmt/format.h>

#include <algorithm>
#include <utility>

#include "base/utf8.h"
#include "carousel/error.h"

namespace carousel {
namespace {

// The length of the longest end of `text` that begins, but does not complete, one of `stops`.
std::size_t LongestBeginning(std::string_view text, const std::vector<std::string>& stops) {
  std::size_t longest = 0;
  for (const std::string& stop : stops) {
    for (std::size_t bytes = std::min(stop.size() - 1, text.size()); bytes > longest; --bytes) {
      if (text.ends_with(std::string_view(stop).substr(0, bytes))) {
        longest = bytes;
        break;
      }
    }
  }
  return longest;
}

}  // namespace

StopStringMatcher::StopStringMatcher(std::vector<std::string> stops) : stops_(std::move(stops)) {
  for (const std::string& stop : stops_) {
    if (stop.empty())
      throw Error(ErrorCode::kInvalidArgument, "stop", "an empty text stops everything; give some");
    if (const auto offset = FindInvalidUtf8(stop))
      throw Error(ErrorCode::kInvalidArgument, "stop",
                  fmt::format("not valid UTF-8 at byte {}; give text in UTF-8", *offset));
  }
}

std::string StopStringMatcher::Push(std::string_view text) {
  if (matched_) return "";
  held_ += text;
  std::size_t match_end = std::string::npos;
  for (std::size_t i = 0; i < stops_.size(); ++i) {
    const std::size_t begin = held_.find(stops_[i]);
    if (begin == std::string::npos) continue;
    const std::size_t end = begin + stops_[i].size();
    if (!matched_ || end < match_end ||
        (end == match_end && stops_[i].size() > stops_[*matched_].size())) {
      matched_ = i;
      match_end = end;
    }
  }
  const std::size_t shown = matched_ ? match_end - stops_[*matched_].size()
                                     : held_.size() - LongestBeginning(held_, stops_);
  std::string out = held_.substr(0, shown);
  held_.erase(0, matched_ ? held_.size() : shown);
  return out;
}

std::string StopStringMatcher::Flush() { return std::exchange(held_, std::string()); }

}  // namespace carousel
