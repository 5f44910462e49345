// SPDX-License-Identifier: Apache-2.0
// A conversation that somebody else has kept, as a prompt.
#pragma once

#include <vector>

#include "answers/conversation.h"
#include "carousel/types.h"
#include "text/prompt_encoder.h"
#include "text/turn_format.h"

namespace carousel {

// The tokens of `messages` up to where the next answer begins: a system message or none, then users
// and assistants in turn, the last one a user's. What was answered is text. Throws carousel::Error
// (kInvalidArgument, field "messages") for another order, and as TurnFormat does.
std::vector<TokenId> EncodeMessages(const std::vector<Message>& messages, const TurnFormat& format,
                                    PromptEncoder* encoder);

}  // namespace carousel
