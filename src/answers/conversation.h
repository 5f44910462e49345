// SPDX-License-Identifier: Apache-2.0
// A conversation in the turns of a chat template. What was said stays said: a turn that fails, or
// that is stopped before the model has read it, leaves no trace.
#pragma once

#include <cstdint>
#include <optional>
#include <string>
#include <string_view>
#include <vector>

#include "answers/answer.h"
#include "text/turn_format.h"

namespace carousel {

struct Message {
  std::string role;  // "system", "user" or "assistant"
  std::string content;
};

// What the turns of a conversation have in common.
struct TurnSettings {
  std::optional<std::string> system;
  bool pin_system = false;  // the system message is never evicted
  std::int64_t max_new_tokens = 0;
  SamplingParams sampling;  // its seed is the first turn's; later turns count on from it
  std::vector<std::string> stops;
};

class Conversation {
 public:
  // All must outlive this. `format` is reducible.
  Conversation(SingleSequenceEngine* engine, const Tokenizer& tokenizer, const TurnFormat& format,
               TurnSettings settings);

  // Says `message` and lets the model answer. An answer without tokens that was cancelled was
  // stopped before the message was read: the turn is taken back, and so it is when this throws.
  // After a turn was taken back in the middle, the next one reads again what was said before it.
  Answer Say(const std::string& message, const AnswerListener& listener);
  // Forgets what was said.
  void Reset();

  // What was said and answered.
  const std::vector<Message>& messages() const { return messages_; }
  // How many tokens the next turn has to read again; 0: none.
  std::int64_t tokens_to_read_again() const {
    return in_cache_ ? 0 : static_cast<std::int64_t>(said_.tokens.size());
  }

 private:
  // What the sequence has read, and what of it is pinned.
  struct Said {
    std::vector<TokenId> tokens;
    std::vector<TokenSpan> pinned;
  };
  Said NextTurn(const std::string& message);
  Request RequestOf(const Said& turn) const;
  void Keep(const Said& turn, const std::string& message, const Answer& answer);
  void TakeBack();

  SingleSequenceEngine* engine_;
  const TurnFormat& format_;
  TurnSettings settings_;
  PromptEncoder encoder_;
  std::vector<Message> messages_;
  Said said_;
  bool in_cache_ = true;  // the engine's sequence is said_
  std::uint64_t turns_ = 0;
};

}  // namespace carousel
