// SPDX-License-Identifier: Apache-2.0
// Ends an answer at given texts, which may arrive in pieces.
#pragma once

#include <cstddef>
#include <optional>
#include <string>
#include <string_view>
#include <vector>

namespace carousel {

// Lets text through, holding back what may be the beginning of a stop string. The string whose last
// byte comes first in the text wins; of several that end there, the longest. So the outcome does
// not depend on how the text is cut into pieces.
class StopStringMatcher {
 public:
  // Throws carousel::Error (field "stop") for an empty string or one that is not valid UTF-8.
  explicit StopStringMatcher(std::vector<std::string> stops);

  // The text that can be shown now. Once a stop string is found: what stands before it, then
  // nothing more.
  std::string Push(std::string_view text);
  // What was held back, when the text has ended without a stop string.
  std::string Flush();
  // Which stop string was found, as an index into the constructor's list.
  std::optional<std::size_t> matched() const { return matched_; }
  const std::vector<std::string>& stops() const { return stops_; }

 private:
  std::vector<std::string> stops_;
  std::string held_;  // shorter than the longest stop string
  std::optional<std::size_t> matched_;
};

}  // namespace carousel
