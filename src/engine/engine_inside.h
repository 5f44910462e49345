// SPDX-License-Identifier: Apache-2.0
// What tests see of an engine that nobody else does: its sequences from inside, and whether all of
// it is whole.
#pragma once

#include "carousel/engine.h"
#include "engine/prefix_index.h"
#include "engine/sequence_run.h"

namespace carousel {

class EngineInside {
 public:
  virtual ~EngineInside() = default;

  // Between steps: CHECKs that every block of every pool is held as often as the tables of
  // sequences and checkpoints say and never twice by one, that those which are held by nobody are
  // free, that sequences which were moved out hold none, and that each request is in line once.
  virtual void CheckIntegrity() const = 0;
  // CHECKs that it is open. Valid until it is closed, reset or rewound.
  virtual const SequenceRun& RunOf(SequenceId sequence) const = 0;
  virtual const PrefixIndex& prefixes() const = 0;
};

// Of an engine that Engine::Create has made.
const EngineInside& InsideOf(const Engine& engine);

}  // namespace carousel
