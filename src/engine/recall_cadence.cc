// SPDX-License-Identifier: Apache-2.0
#include "engine/recall_cadence.h"

#include <algorithm>

namespace carousel {
namespace {

// A choice in an answer serves fewer tokens than one in a prompt, so it has to gain more.
constexpr double kAnswerGain = 5.0;

// The next interval after one that gained `gain`.
std::int64_t Next(std::int64_t interval, std::int64_t most, double gain, double least) {
  return gain < least ? std::min(most, 2 * interval) : 1;
}

}  // namespace

std::int64_t RecallCadence::BeginPrompt(const RecallConfig& config) {
  if (noted_ > 0)
    chunks_ = Next(chunks_, kMostChunks, gained_ / static_cast<double>(noted_), config.least_gain);
  gained_ = 0.0;
  noted_ = 0;
  interval_ = 1;
  wait_ = std::min<std::int64_t>(2, config.every);
  return config.chunk * chunks_;
}

bool RecallCadence::BeginAnswerStep() { return --wait_ <= 0; }

void RecallCadence::NotePrompt(double gain) {
  gained_ += gain;
  ++noted_;
}

void RecallCadence::NoteAnswer(const RecallConfig& config, double gain) {
  interval_ = Next(interval_, config.every, gain, kAnswerGain * config.least_gain);
  wait_ = interval_;
}

}  // namespace carousel
