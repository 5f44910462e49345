// SPDX-License-Identifier: Apache-2.0
// Prompts that come out of files. Errors are carousel::Error; those that concern what is in a file
// have the field "prompt".
#pragma once

#include <nlohmann/json_fwd.hpp>
#include <string>
#include <string_view>
#include <vector>

#include "carousel/types.h"
#include "text/turn_format.h"

namespace carousel {

// The whole text; "-" is standard input.
std::string ReadPromptFile(const std::string& path);
// The same, whatever is in it: for files whose lines are judged one by one.
std::string ReadPromptLines(const std::string& path);
// A JSON array of token ids, at least one.
std::vector<TokenId> ReadTokenIds(const std::string& path);
// A JSON array's token ids, at least one; `where` names the array in messages.
std::vector<TokenId> TokenIdsOf(const nlohmann::json& ids, const std::string& where);
// The chat template of a model's folder. Throws carousel::Error that ends in `mend` when there is
// none or it cannot be reduced to turns.
TurnFormat LoadTurns(const std::string& model_directory, std::string_view mend);

}  // namespace carousel
