// SPDX-License-Identifier: Apache-2.0
// The model as OpenVINO runs it by itself, in f32 throughout: stateful, with its own attention.
// What ours must equal.
#pragma once

#include <cstdint>
#include <filesystem>
#include <openvino/runtime/compiled_model.hpp>
#include <openvino/runtime/core.hpp>
#include <openvino/runtime/infer_request.hpp>
#include <span>
#include <vector>

#include "carousel/types.h"

namespace carousel::testing {

struct PlainModelOptions {
  std::filesystem::path directory;
  std::int64_t threads = 0;    // 0: all cores
  bool last_row_only = false;  // slices the hidden state before the vocabulary projection
  bool has_profile = false;
};

class PlainModel {
 public:
  explicit PlainModel(const PlainModelOptions& options);

  // Appends the tokens to the state. Returns logits [tokens or 1, vocabulary], valid until the next
  // call.
  std::span<const float> Step(std::span<const TokenId> tokens);
  void Forget();
  // Of the last step, inside attention nodes. Needs has_profile.
  double AttentionMilliseconds() const;

 private:
  ov::Core core_;
  ov::CompiledModel compiled_;
  ov::InferRequest request_;
  std::int64_t past_ = 0;
};

}  // namespace carousel::testing
