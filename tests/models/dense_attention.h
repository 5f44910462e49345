// SPDX-License-Identifier: Apache-2.0
// The slow judge of attention callbacks: everything kept, everything in double, one sequence.
#pragma once

#include <cstdint>
#include <vector>

#include "carousel/model.h"

namespace carousel::testing {

// Keeps every key and value it is given and attends to all that each layer's spec lets a query see.
class DenseAttention : public AttentionCallback {
 public:
  explicit DenseAttention(const ModelSpec& spec);

  void Attend(std::int64_t layer, std::int64_t tokens, const float* q, const float* k,
              const float* v, float* out) override;
  void Forget();
  // Layers in the order in which they were called since Forget.
  const std::vector<std::int64_t>& calls() const { return calls_; }

 private:
  struct Row {
    std::int64_t layer;
    std::int64_t head;
    std::int64_t place;  // of the query among all tokens
  };
  void AttendRow(const Row& row, const float* q, float* out) const;
  double Score(const Row& row, std::int64_t key, const float* q) const;

  const ModelSpec& spec_;
  std::vector<std::vector<float>> keys_;    // [layers][tokens * Hkv * key_dim]
  std::vector<std::vector<float>> values_;  // [layers][tokens * Hkv * value_dim]
  std::vector<std::int64_t> calls_;
};

}  // namespace carousel::testing
