// SPDX-License-Identifier: Apache-2.0
// What choosing a token from logits costs, beside the model that they come from.
#pragma once

#include <cstdint>
#include <span>
#include <string_view>
#include <vector>

#include "carousel/request.h"
#include "engine/logits.h"
#include "engine/sampler.h"
#include "measure/contender.h"

namespace carousel {

struct NamedSampling {
  std::string_view name;
  SamplingParams params;
};

// Ways to sample, greedy first. "chat" is what chats use: ChatSampling.
std::span<const NamedSampling> SamplingWays();

// Rows of random logits, spread as those of models are: normal with a standard deviation of 5 (of
// SmolLM2-135M, half of the words lie 20 below the largest, one in a thousand within 5.3; of Gemma
// 3 270M 24 and 7.5).
class LogitRows {
 public:
  // As many rows as a second-level cache does not hold and a third-level one does, where a model
  // leaves them.
  explicit LogitRows(std::int64_t vocabulary_size);

  std::int64_t vocabulary_size() const { return vocabulary_size_; }
  // Row `index`, modulo how many there are.
  std::span<const float> operator[](std::int64_t index) const;

 private:
  std::int64_t vocabulary_size_;
  std::int64_t rows_;
  std::vector<float> logits_;  // [rows, vocabulary_size]
};

// One request that samples on and on: what the engine does with each row of a decode step.
class SamplingContender : public Contender {
 public:
  // `rows` outlive this. The prompt was of random tokens.
  SamplingContender(const LogitRows* rows, const SamplingParams& params, std::int64_t draws);

  void Run() override;
  std::int64_t draws() const { return draws_; }

 private:
  const LogitRows* rows_;
  Sampler sampler_;
  LogitsSummary summary_;
  std::int64_t draws_;  // of a run
  std::int64_t next_row_ = 0;
};

}  // namespace carousel
