// SPDX-License-Identifier: Apache-2.0
#include "cli/bracketed_paste.h"

#include <utility>

#include "text/text_mender.h"

namespace carousel {
namespace {

constexpr std::string_view kBegin = "\x1b[200~";
constexpr std::string_view kEnd = "\x1b[201~";

// Terminals send a line's end as the Enter key does, as CR; some as CR LF.
std::string PastedText(std::string_view bytes) {
  std::string lines;
  for (std::size_t i = 0; i < bytes.size(); ++i) {
    if (bytes[i] == '\r' && bytes.substr(i + 1).starts_with('\n')) continue;
    lines += bytes[i] == '\r' ? '\n' : bytes[i];
  }
  TextMender mender;
  std::string text;
  mender.Add(lines, &text);
  mender.End(&text);
  return text;
}

}  // namespace

void PasteParser::Push(char byte) {
  held_ += byte;
  if (pasting_) {
    if (!held_.ends_with(kEnd)) return;
    held_.resize(held_.size() - kEnd.size());
    if (!held_.empty()) events_.push_back({.is_paste = true, .text = PastedText(held_)});
    held_.clear();
    pasting_ = false;
    return;
  }
  while (!held_.empty() && !kBegin.starts_with(held_)) {
    events_.push_back({.text = held_.substr(0, 1)});
    held_.erase(0, 1);
  }
  if (held_ != kBegin) return;
  held_.clear();
  pasting_ = true;
}

void PasteParser::ReleaseKeys() {
  if (pasting_) return;
  for (const char byte : std::exchange(held_, std::string()))
    events_.push_back({.text = std::string(1, byte)});
}

std::optional<char> PasteParser::TakeKey() {
  if (events_.empty() || events_.front().is_paste) return std::nullopt;
  const char key = events_.front().text.front();
  events_.pop_front();
  return key;
}

std::optional<std::string> PasteParser::TakePaste() {
  if (events_.empty() || !events_.front().is_paste) return std::nullopt;
  std::string text = std::move(events_.front().text);
  events_.pop_front();
  return text;
}

}  // namespace carousel
