// SPDX-License-Identifier: Apache-2.0
// What whoever asks for nothing gets, by the program, a server or a binding: more than the structs
// of config.h and request.h hold on their own, which is the least that they can mean.
#pragma once

#include <cstdint>

#include "carousel/config.h"
#include "carousel/request.h"

namespace carousel {

// What is recalled, as far as there is room for it: a quarter of a cache of 1,024 tokens, out of
// the last 16 caches' worth. Memory then stays flat, and what was said a few thousand tokens ago
// comes back (docs/decisions/0014-what-recall-finds.md).
inline constexpr std::int64_t kRecalledBlocks = 8;
inline constexpr std::int64_t kStoredCaches = 16;

// Recalls, and every size may give way.
EngineConfig DefaultEngineConfig();
// Tokens that recall stores in each KV head beside a cache of `max_cache_size`.
std::int64_t DefaultRecallLimit(std::int64_t max_cache_size);

// How a chat samples. Mild: enough chance that a small model leaves its loops, little enough that
// it keeps to the subject.
SamplingParams ChatSampling();
inline constexpr std::int64_t kChatAnswerTokens = 1024;  // at most

}  // namespace carousel
