// SPDX-License-Identifier: Apache-2.0
// OpenVINO's own paged attention as a contender beside ours.
#pragma once

#include <memory>

#include "measure/attention_load.h"

namespace carousel {

enum class RivalKvType { kF16, kU8 };

// All layers are operations of one model and run in one inference per copy, as they would in a
// decoder, so that what an inference costs by itself is spread over them. The threads are as many
// as ours; it computes in f32. A run includes what the operation does besides attending: it writes
// the new tokens' keys and values into its cache. It does not include scores for eviction, which it
// is not asked for.
//
// The caches hold the load's tokens, written by the operation itself. `load` outlives the result;
// its block_size is 32, which is all that the operation has on CPUs. Throws carousel::Error
// (kModel, field "openvino") when OpenVINO does not have the operation as this was written for, or
// fails.
std::unique_ptr<AttentionContender> MakeRivalAttention(const AttentionLoad& load, RivalKvType type);

}  // namespace carousel
