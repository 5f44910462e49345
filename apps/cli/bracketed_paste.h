// SPDX-License-Identifier: Apache-2.0
// What a terminal sends, told apart: keys that were typed, and text that was pasted.
#pragma once

#include <deque>
#include <optional>
#include <string>
#include <string_view>

namespace carousel {

// Tells a terminal to mark what is pasted from now on, and to leave it (xterm, "bracketed paste").
inline constexpr std::string_view kMarkPastes = "\x1b[?2004h";
inline constexpr std::string_view kLeavePastes = "\x1b[?2004l";

class PasteParser {
 public:
  // The next byte that the terminal sent.
  void Push(char byte);
  // Whether bytes are held back that may yet begin a paste, an Escape above all. When nothing
  // follows for a moment, they were keys: ReleaseKeys.
  bool holds_back() const { return !pasting_ && !held_.empty(); }
  void ReleaseKeys();
  bool pasting() const { return pasting_; }

  // In the order of what was sent; the pastes lie between the keys that were typed before and after
  // them. nullopt: the next one is a paste, or nothing is there.
  std::optional<char> TakeKey();
  // A whole paste as text: its line ends are '\n', and what is no UTF-8 is replaced. nullopt: the
  // next one is a key, or nothing is there.
  std::optional<std::string> TakePaste();

 private:
  struct Event {
    bool is_paste = false;
    std::string text;  // of a key one byte
  };

  std::string held_;  // the beginning of a mark, or all of a paste so far
  bool pasting_ = false;
  std::deque<Event> events_;
};

}  // namespace carousel
