// SPDX-License-Identifier: Apache-2.0
// Prompts that come out of files. Errors are carousel::Error; those that concern what is in a file
// have the field "prompt".
#pragma once

#include <string>
#include <vector>

#include "carousel/types.h"

namespace carousel {

// The whole text; "-" is standard input.
std::string ReadPromptFile(const std::string& path);
// A JSON array of token ids, at least one.
std::vector<TokenId> ReadTokenIds(const std::string& path);

}  // namespace carousel
