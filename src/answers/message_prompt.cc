// SPDX-License-Identifier: Apache-2.0
#include "answers/message_prompt.h"

#include <fmt/format.h>

#include <optional>
#include <string>

#include "carousel/error.h"

namespace carousel {
namespace {

void RequireRole(const std::vector<Message>& messages, std::size_t index, std::string_view role) {
  if (index < messages.size() && messages[index].role == role) return;
  const std::string is =
      index < messages.size()
          ? fmt::format("message {} is \"{}\"'s", index + 1, messages[index].role)
          : fmt::format("there are {} messages", messages.size());
  throw Error(ErrorCode::kInvalidArgument, "messages",
              fmt::format("{}, and \"{}\"'s should come there; give an optional system message, "
                          "then user and assistant in turn, and a user's last",
                          is, role));
}

}  // namespace

std::vector<TokenId> EncodeMessages(const std::vector<Message>& messages, const TurnFormat& format,
                                    PromptEncoder* encoder) {
  std::size_t next = 0;
  std::optional<std::string> system;
  if (!messages.empty() && messages.front().role == "system") system = messages[next++].content;
  RequireRole(messages, next, "user");
  std::vector<TokenId> tokens = encoder->Encode(format.FirstTurn(system, messages[next].content));
  const auto append = [&tokens](const std::vector<TokenId>& more) {
    tokens.insert(tokens.end(), more.begin(), more.end());
  };
  for (++next; next < messages.size(); next += 2) {
    RequireRole(messages, next, "assistant");
    RequireRole(messages, next + 1, "user");
    append(encoder->EncodeText(messages[next].content, /*continues_text=*/true));
    append(encoder->Encode(format.NextTurn(messages[next + 1].content), /*continues_text=*/true));
  }
  return tokens;
}

}  // namespace carousel
