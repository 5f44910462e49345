// SPDX-License-Identifier: Apache-2.0
#include "measure/sampling_cost.h"

#include <algorithm>
#include <cstddef>
#include <random>

#include "carousel/defaults.h"

namespace carousel {
namespace {

constexpr std::int64_t kBytes = std::int64_t{8} << 20;
constexpr std::int64_t kPromptTokens = 512;
constexpr float kDeviation = 5.0F;

}  // namespace

std::span<const NamedSampling> SamplingWays() {
  static const SamplingParams chat = ChatSampling();
  static const NamedSampling ways[] = {
      {"greedy", {}},
      {"chat", chat},
      {"penalty",
       {.repetition_penalty = chat.repetition_penalty, .penalty_window = chat.penalty_window}},
      {"temperature", {.temperature = 1.0}},
      {"top_p", {.temperature = 1.0, .top_p = 0.95}},
      {"top_k", {.temperature = 0.8, .top_k = 40}},
      {"min_p", {.temperature = 1.0, .min_p = 0.05}},
      {"logprobs", {.logprobs = 20}},
  };
  return ways;
}

LogitRows::LogitRows(std::int64_t vocabulary_size)
    : vocabulary_size_(vocabulary_size),
      rows_(std::max<std::int64_t>(
          2, kBytes / (vocabulary_size * static_cast<std::int64_t>(sizeof(float))))),
      logits_(static_cast<std::size_t>(rows_ * vocabulary_size)) {
  std::mt19937_64 generator(1);
  std::normal_distribution<float> normal(0.0F, kDeviation);
  for (float& logit : logits_) logit = normal(generator);
}

std::span<const float> LogitRows::operator[](std::int64_t index) const {
  return std::span<const float>(logits_).subspan(
      static_cast<std::size_t>(index % rows_ * vocabulary_size_),
      static_cast<std::size_t>(vocabulary_size_));
}

SamplingContender::SamplingContender(const LogitRows* rows, const SamplingParams& params,
                                     std::int64_t draws)
    : rows_(rows), sampler_(params), draws_(draws) {
  std::mt19937_64 generator(2);
  std::uniform_int_distribution<TokenId> any(0, static_cast<TokenId>(rows->vocabulary_size() - 1));
  for (std::int64_t i = 0; i < kPromptTokens; ++i) sampler_.See(any(generator));
}

void SamplingContender::Run() {
  for (std::int64_t i = 0; i < draws_; ++i) {
    const std::span<const float> row = (*rows_)[next_row_++];
    Summarise(row, &summary_);
    sampler_.Sample(row, summary_);
  }
}

}  // namespace carousel
