// SPDX-License-Identifier: Apache-2.0
// Turns a stateful decoder's graph into one whose attention is ours and whose logits are only those
// asked for.
#pragma once

#include <cstdint>
#include <memory>
#include <openvino/core/model.hpp>
#include <openvino/runtime/core.hpp>
#include <vector>

#include "carousel/model.h"
#include "openvino/attention_op.h"

namespace carousel {

// Names of the rewritten graph's inputs, i64 unless said otherwise, and of its output. There is
// kOneTokenInput (one_token_branch.h) besides.
inline constexpr const char* kTokenIdsInput = "input_ids";        // [T]
inline constexpr const char* kPositionIdsInput = "position_ids";  // [T]
inline constexpr const char* kLogitRowsInput = "logit_rows";      // [R], rows of T
inline constexpr const char* kContextLengthInput =
    "max_context_len";                                  // [], i32, one past the last position
inline constexpr const char* kLogitsOutput = "logits";  // [R, 1, vocabulary]

struct RewriteOptions {
  std::int64_t trained_window = 0;  // as declared; 0: unknown
  std::shared_ptr<AttentionSlot> slot;
};

struct RewrittenGraph {
  std::shared_ptr<ov::Model> model;
  std::vector<AttentionLayerSpec> layers;
  std::int64_t vocabulary_size = 0;
  bool reads_positions = false;       // false: nothing depends on positions
  bool reads_context_length = false;  // something scales with the whole length
};

// Rewrites `model` in place: SDPAToPagedAttention flattens it to one sequence of tokens, and each
// of that pass's nodes becomes an AttentionOp. No keys or values are kept as state: the callback in
// the slot owns the past. Projections of the same rows become one, and steps of one token get a
// branch of their own. Throws carousel::Error (kModel, "model") naming the node for whatever
// cannot be carried over exactly: no attention, attention that the pass or MeasureMasks do not
// understand, inputs that a text stream cannot give, state that is not attention's.
RewrittenGraph RewriteAttention(ov::Core& core, std::shared_ptr<ov::Model> model,
                                const RewriteOptions& options);

}  // namespace carousel
