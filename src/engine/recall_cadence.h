// SPDX-License-Identifier: Apache-2.0
// How often one KV head chooses what it recalls. Most heads look at much the same blocks from token
// to token, and a few at others all the time: so each choice says what it gained over keeping the
// former one, and a head that gained little chooses half as often the next time, one that gained
// much as often as it may (docs/decisions/0015-how-often-recall-chooses.md).
#pragma once

#include <cstdint>

#include "carousel/recall_config.h"

namespace carousel {

class RecallCadence {
 public:
  // So many times RecallConfig::chunk tokens of a prompt share a choice at most.
  static constexpr std::int64_t kMostChunks = 4;

  // How many tokens of the next step, of a prompt, share a choice. What is chosen last holds for
  // the first token of an answer as well: that token alone knows less of what is asked.
  std::int64_t BeginPrompt(const RecallConfig& config);
  // Counts a step of an answer; whether the head chooses in it.
  bool BeginAnswerStep();
  // Of a choice, and not the step's first where a prompt has several: the share of the voters'
  // attention that it gives to recalled blocks beyond what the former choice would have given.
  void NotePrompt(double gain);
  void NoteAnswer(const RecallConfig& config, double gain);

 private:
  std::int64_t chunks_ = 1;    // of a prompt that share a choice
  double gained_ = 0.0;        // by the choices of the last step of a prompt
  std::int64_t noted_ = 0;     // so many of them
  std::int64_t interval_ = 1;  // steps of an answer between choices
  std::int64_t wait_ = 1;      // steps until the next choice
};

}  // namespace carousel
